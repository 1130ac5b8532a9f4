"""What happens between phases: shapes change, weights and moments follow, on every mesh and across a resume."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import Mesh
from forgepress.tests.sessions import OWN, config_of, run
from forgepress.trainer.artifact import load
from forgepress.trainer.boundary import follow
from forgepress.trainer.config import RunConfig
from forgepress.trainer.export import export
from forgepress.trainer.loop import Trainer
from forgepress.trainer.verify import Trace, compare
from torch import nn

MAGNITUDE = {"name": "pruning.magnitude", "sparsity": 0.3, "ramp": "one_shot", "begin": 2}
REMOVE, SLOPE = {"name": f"{OWN}RemoveNeurons"}, {"name": f"{OWN}LearnedSlope"}
PHASES = [
    {"name": "prune", "steps": 4, "techniques": [MAGNITUDE]},  # its zeros must outlive all that follows
    {"name": "shrink", "steps": 4, "techniques": [REMOVE, SLOPE]},
    {"name": "tune", "steps": 4},
]
FROZEN = {"factory": f"{OWN}frozen_and_normalised", "args": {"hidden": 16}}
MESHES: dict[str, dict[str, int]] = {
    "replicate=2": {"replicate": 2},
    "shard=2": {"shard": 2},
    "shard=4": {"shard": 4},  # 6 neurons are left for 4 ranks: 2, 2, 2 and none
    "tensor=2": {"tensor": 2},
    "pipeline=2": {"pipeline": 2},
    "shard=2 x tensor=2": {"shard": 2, "tensor": 2},
}


@functools.cache
def alone(model: str = "") -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        return run(config(Path(folder) / "alone", {}, model))


def config(folder: Path, degrees: dict[str, int], model: str = "", **values: Any) -> RunConfig:
    if model == "frozen":
        values["model"] = FROZEN
        # a pipeline fills the last, uneven batch with copies of rows, which batch normalisation would count
        values["data"] = {"source": "digits", "batch": 30, "tail": "drop"}
    return config_of(folder, degrees, **{"phases": PHASES, **values})


@pytest.mark.parametrize("mesh", MESHES)
def test_a_phase_that_removes_neurons_gives_the_weights_moments_and_losses_of_one_process(
    mesh: str, tmp_path: Path
) -> None:
    there = run(config(tmp_path / "run", MESHES[mesh]))
    difference = compare(alone(), there)
    assert difference.within() and difference.masks == 0.0, difference
    assert there.tensors["end-1-and-then/moment/fc1.weight/exp_avg"].shape == (6, 64)
    assert there.tensors["end-1-and-then/moment/fc2.weight/exp_avg_sq"].shape == (12, 6)


def test_the_moments_after_a_removal_are_those_of_the_kept_neurons() -> None:
    tensors = alone().tensors
    whole = tensors["end-1/model/fc1.weight"]
    kept = whole.norm(dim=1).topk(6).indices.sort().values
    assert kept.tolist() != list(range(6))
    assert torch.equal(tensors["end-1-and-then/model/fc1.weight"], whole[kept])
    assert torch.equal(tensors["end-1-and-then/model/fc1.bias"], tensors["end-1/model/fc1.bias"][kept])
    assert torch.equal(tensors["end-1-and-then/model/fc2.weight"], tensors["end-1/model/fc2.weight"][:, kept])
    assert tensors["end-1-and-then/count/fc1.weight/step"] == 8.0  # Adam's bias correction goes on
    # and the moments are not those of the neurons that went: the next step alone tells them apart
    moment = tensors["end-1-and-then/moment/fc1.weight/exp_avg"]
    assert moment.abs().amax(dim=1).count_nonzero() == 6


def test_a_swapped_module_gets_fresh_state_and_leaves_none_behind() -> None:
    tensors = alone().tensors
    into, out = "end-0-and-then", "end-1-and-then"
    assert torch.equal(tensors[f"{into}/model/relu2.weight"], torch.tensor([0.1]))
    assert (
        f"{into}/moment/relu2.weight/exp_avg" not in tensors
    )  # born at this boundary: nothing to go on from
    assert f"{into}/moment/fc2.weight/exp_avg" in tensors
    learned = tensors["end-1/model/relu2.weight"]
    assert learned != 0.1
    assert torch.equal(tensors["end-2/buffer/relu2.slope"], learned)
    assert not any(key.startswith(out) and "relu2" in key for key in tensors)


def test_zeros_of_an_earlier_phase_outlive_the_removal() -> None:
    tensors = alone().tensors
    for layer in ("fc1", "fc2", "fc3"):
        then = tensors[f"end-1-and-then/model/{layer}.weight"] == 0
        assert then.any()
        assert torch.equal(tensors[f"end-2/model/{layer}.weight"] == 0, then)


@pytest.mark.parametrize("mesh", ["shard=2", "pipeline=2"])
def test_frozen_parameters_and_buffers_come_through_the_boundary(mesh: str, tmp_path: Path) -> None:
    there = run(config(tmp_path / "run", MESHES[mesh], "frozen"))
    difference = compare(alone("frozen"), there)
    assert difference.within() and difference.masks == 0.0, difference
    assert torch.equal(there.tensors["end-2/model/stem.weight"], there.start["stem.weight"])
    assert there.tensors["end-2/buffer/norm.num_batches_tracked"] == 24  # 12 steps of 2 micro-batches


# 6: in the phase that removes · 8: its end, saved just before the boundary · 9: after the first step behind it
@pytest.mark.parametrize(
    ("stop_at", "first", "then"),
    [
        (6, "shard=2", "tensor=2"),
        (8, "tensor=2", "shard=2 x tensor=2"),
        (8, "pipeline=2", "shard=4"),
        (9, "shard=4", "pipeline=2"),
        (9, "shard=2 x tensor=2", "replicate=2"),
    ],
)
def test_a_run_stopped_around_the_boundary_goes_on_as_if_it_was_not_also_on_another_mesh(
    stop_at: int, first: str, then: str, tmp_path: Path
) -> None:
    run(config(tmp_path / "run", MESHES[first]), stop_at=stop_at)
    resumed = run(config(tmp_path / "run", MESHES[then]))
    difference = compare(alone(), resumed)
    assert difference.within() and difference.masks == 0.0, difference


def test_the_artifact_replays_the_plan_and_so_does_an_export_from_a_checkpoint(tmp_path: Path) -> None:
    checked = config(
        tmp_path / "run", {}, export=["safetensors", "packed"], evaluate={"metrics": ["accuracy"]}
    )
    summary = Trainer(checked).fit()
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [(line["phase"], line["technique"]) for line in plan] == [
        ("prune", "pruning.magnitude"),
        ("shrink", "pruning.keep_zeros"),
        ("shrink", REMOVE["name"]),
        ("shrink", SLOPE["name"]),
        ("tune", "pruning.keep_zeros"),
    ]
    kept = plan[2]["record"]["kept"]["fc1.weight"]["0"]
    assert len(kept) == 6
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    loaded = [load(tmp_path / "run" / "artifacts" / name) for name in ("safetensors", "packed")]
    assert [tuple(p.shape) for p in loaded[0].parameters()][:3] == [(6, 64), (6,), (12, 6)]
    assert torch.equal(loaded[0](rows), loaded[1](rows))
    assert summary["params"]["total"] == sum(p.numel() for p in loaded[0].parameters())
    assert summary["artifacts"][0]["metrics"] == pytest.approx(summary["metrics"], rel=1e-4)

    export(tmp_path / "run" / "checkpoints" / "step-9", ["safetensors"])  # the tune phase after one step
    assert [tuple(p.shape) for p in load(tmp_path / "run" / "artifacts" / "safetensors").parameters()] == [
        tuple(p.shape) for p in loaded[0].parameters()
    ]


def test_a_shape_that_changes_without_a_record_of_what_was_kept_starts_its_moments_anew(
    tmp_path: Path,
) -> None:
    halve = {"name": f"{OWN}ReshapeWithoutRecord"}
    phases = [{"name": "halve", "steps": 2, "techniques": [halve]}, {"name": "tune", "steps": 2}]
    trace = run(config(tmp_path / "run", {"shard": 2}, phases=phases))
    begins = {
        key.removeprefix("end-0-and-then/") for key in trace.tensors if key.startswith("end-0-and-then/")
    }
    assert "moment/fc3.weight/exp_avg" in begins and "count/fc3.weight/step" in begins
    assert not any(key.startswith(("moment/fc1", "count/fc1", "moment/fc2.weight")) for key in begins)
    assert trace.tensors["end-1/model/fc1.weight"].shape == (8, 64)


def test_moments_follow_every_dim_that_the_record_names() -> None:
    moment = torch.arange(12.0).reshape(3, 4)
    record = {"kept": {"layer.weight": {"0": [2, 0], 1: [1, 3]}}}
    followed = follow({"layer.weight/exp_avg": moment, "other.weight/exp_avg": moment}, record)
    assert followed["layer.weight/exp_avg"].tolist() == [[9.0, 11.0], [1.0, 3.0]]
    assert torch.equal(followed["other.weight/exp_avg"], moment)


def test_another_optimizer_in_the_next_phase_starts_anew(tmp_path: Path) -> None:
    phases = [
        {"name": "shrink", "steps": 2, "techniques": [REMOVE]},
        {"name": "tune", "steps": 2, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
    ]
    trace = run(config(tmp_path / "run", {"shard": 2}, phases=phases))
    assert not any(key.startswith(("end-0-and-then/moment", "end-0-and-then/count")) for key in trace.tensors)
    assert len(trace.steps) == 4


def test_a_technique_that_matches_nothing_is_refused_before_the_first_step(tmp_path: Path) -> None:
    phases = [{"name": "prune", "steps": 2, "techniques": [{**MAGNITUDE, "match": "convolution.*"}]}]
    with pytest.raises(ConfigError, match=r"pruning.magnitude matches no parameter.*convolution"):
        Trainer(config(tmp_path / "run", {}, phases=phases), mesh=Mesh()).fit()


def test_a_plan_is_replayed_in_the_order_of_the_run() -> None:
    """All techniques of a phase prepare before the first of them finalizes."""
    from forgepress.compression import replay

    calls: list[str] = []

    class Spy(nn.Module):
        def set_submodule(self, target: str, module: nn.Module, strict: bool = False) -> None:
            calls.append(f"{target} {type(module).__name__}")
            super().set_submodule(target, module, strict)

    model = Spy()
    model.a, model.b = nn.ReLU(), nn.ReLU()
    plan = [
        {"phase": phase, "technique": SLOPE["name"], "settings": {"activation": name}, "record": {}}
        for phase, name in (("one", "a"), ("one", "b"), ("two", "a"))
    ]
    replay(model, plan)
    assert calls == ["a PReLU", "b PReLU", "a FixedSlope", "b FixedSlope", "a PReLU", "a FixedSlope"]
