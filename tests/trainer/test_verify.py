"""The proofs hold for runs that are one, and fail for techniques that are broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.errors import NoOpError
from forgepress.launch import verify as launched
from forgepress.parallel import Mesh
from forgepress.tests.sessions import OWN, config_of, on_ranks
from forgepress.trainer import verify
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer
from forgepress.trainer.verify import Trace, compare, parity, resume

FOUR = [{"shard": 2}, {"tensor": 2}, {"pipeline": 2}, {"shard": 2, "tensor": 2}]


def tiny(folder: Path, *techniques: dict[str, Any], **values: Any) -> RunConfig:
    phases = [{"name": "dense", "steps": 2}, {"name": "compress", "steps": 100, "techniques": [*techniques]}]
    return config_of(folder / "run", {}, **{"phases": phases, **values})


MAGNITUDE = {"name": "pruning.magnitude", "sparsity": 0.6, "every": 1, "end": 50}  # half of the long phase


def test_parity_holds_for_a_run_that_is_the_same_on_every_mesh(tmp_path: Path) -> None:
    holds, table = parity(tiny(tmp_path, MAGNITUDE), FOUR, on_ranks)
    assert holds and table.count("│ pass") == 4 and "FAIL" not in table
    assert "shard=2 × tensor=2" in table and "one process" in table
    assert not (tmp_path / "run").exists()  # a proof leaves the run's own folder alone


def test_parity_holds_on_another_engine_and_against_the_native_one(tmp_path: Path) -> None:
    config = tiny(tmp_path, MAGNITUDE, parallel={"engine": "accelerate", "shard": 2, "microbatches": 2})
    zero = {"shard": 2, "engine": "deepspeed", "deepspeed": {"stage": 2}}
    holds, table = parity(config, [{"shard": 2}, zero], on_ranks)
    assert holds and "shard=2, ZeRO-2" in table


def test_parity_fails_for_a_technique_that_takes_a_local_for_a_global_quantile(tmp_path: Path) -> None:
    config = tiny(tmp_path, {"name": f"{OWN}LocalQuantile"})
    holds, table = parity(config, [{"shard": 2}, {"replicate": 2}], on_ranks)
    assert not holds
    lines = {line.split("│")[1].strip(): line for line in table.splitlines() if line.count("│") > 3}
    assert "FAIL" in lines["shard=2"] and "pass" in lines["replicate=2"]


def test_a_broken_technique_ends_the_command_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `forgepress verify parity` does it: on processes of its own."""
    phases = [{"name": "compress", "steps": 3, "techniques": [{"name": f"{OWN}LocalQuantile"}]}]
    assert launched.parity(tiny(tmp_path, phases=phases), [{"shard": 2}]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_resume_is_exact_on_the_same_mesh_and_close_on_another(tmp_path: Path) -> None:
    surgery = {"name": "pruning.network_surgery", "sparsity": 0.6, "every": 2}
    config = tiny(tmp_path, surgery)
    holds, table = resume(config, [], [], on_ranks)
    assert holds and "bit for bit" in table and "killed at 5, 9" in table
    holds, table = resume(config, [4], [{"shard": 2}], on_ranks)
    assert holds and "bit for bit" not in table and "went on with shard=2" in table


def test_resume_fails_for_a_technique_that_keeps_state_where_no_checkpoint_sees_it(tmp_path: Path) -> None:
    forgetful = [{"name": "pull", "steps": 6, "techniques": [{"name": f"{OWN}Forgetful"}]}]
    holds, table = resume(tiny(tmp_path, phases=forgetful), [5], [], on_ranks)
    assert not holds and "FAIL" in table


def test_a_technique_that_writes_into_a_stale_copy_is_stopped_in_the_first_steps(tmp_path: Path) -> None:
    stale = [{"name": "compress", "steps": 20, "techniques": [{"name": f"{OWN}StaleCopy"}]}]
    trainer = Trainer(tiny(tmp_path, phases=stale), mesh=Mesh())
    with pytest.raises(
        NoOpError, match=r"0\.forgepress\.tests\.techniques:StaleCopy requested sparsity 0\.5 .* has 0;"
    ):
        trainer.fit()
    assert trainer.step <= 3


# ── what counts as a difference


def trace(**change: Any) -> Trace:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "end-0/model/w": torch.randn(20, generator=generator),
        "end-0/model/bias": torch.randn(4, generator=generator),
        "end-0/squares/w": torch.full((20,), 1e-4),
        "end-0/squares/bias": torch.full((4,), 1e-6),
        "end-0/chain/0.a/mask/w": torch.ones(20, dtype=torch.bool),
    }
    start = {"w": torch.zeros(20), "bias": torch.zeros(4)}
    return Trace(steps={1: (2.0, 1.0), 2: (1.0, 0.5)}, tensors={**tensors, **change}, start=start)


def test_equal_traces_differ_by_nothing() -> None:
    difference = compare(trace(), trace())
    assert difference.within(exact=True) and difference.noise == ()


@pytest.mark.parametrize(
    "other",
    [
        Trace(steps={1: (2.0, 1.0)}, tensors=trace().tensors, start={}),
        Trace(steps=trace().steps, tensors={}, start={}),
        trace(**{"end-0/model/w": torch.zeros(19)}),
    ],
    ids=["a step is missing", "tensors are missing", "another shape"],
)
def test_a_trace_that_lacks_something_differs_without_bound(other: Trace) -> None:
    assert compare(trace(), other).loss == float("inf")


def test_weights_are_measured_against_how_far_they_have_moved() -> None:
    whole = trace().tensors["end-0/model/w"]
    difference = compare(trace(), trace(**{"end-0/model/w": whole * 1.02}))
    assert difference.weights == pytest.approx(0.02, rel=1e-3) and not difference.within()


def test_one_mask_bit_of_twenty_is_five_percent() -> None:
    mask = torch.ones(20, dtype=torch.bool)
    mask[3] = False
    difference = compare(trace(), trace(**{"end-0/chain/0.a/mask/w": mask}))
    assert difference.masks == pytest.approx(0.05) and not difference.within()


def test_a_parameter_whose_gradient_is_rounding_is_named_and_left_out_of_the_weights() -> None:
    quiet = {"end-0/squares/bias": torch.full((4,), 1e-18)}
    moved = {**quiet, "end-0/model/bias": torch.zeros(4)}
    difference = compare(trace(**quiet), trace(**moved))
    assert difference.noise == ("bias",) and difference.within()
    assert "without a gradient beyond rounding: bias" in verify._table("t", [("m", difference, True)])
    assert not compare(trace(), trace(**{"end-0/model/bias": torch.zeros(4)})).within()


def test_a_shortened_phase_keeps_the_techniques_points_in_time_within_it(tmp_path: Path) -> None:
    config = tiny(tmp_path, {**MAGNITUDE, "begin": 0.1})
    short = verify._short(config, {}, 1, tmp_path / "short")
    assert short.phases[1].steps == 6
    assert short.phases[1].techniques[0].settings["end"] == 3  # 50 of 100 steps
    assert short.phases[1].techniques[0].settings["begin"] == 0.1
