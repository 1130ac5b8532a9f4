"""Removal in mid-run: curves go on, stages are cut anew by new costs, summaries say what went, boundaries resume."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from forgepress.parallel import Mesh
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import config_of, run
from forgepress.trainer.artifact import load
from forgepress.trainer.assembly import layout_of
from forgepress.trainer.config import RunConfig
from forgepress.trainer.export import export
from forgepress.trainer.loop import Trainer
from forgepress.trainer.models import build_model
from forgepress.trainer.verify import Trace, compare

STRUCTURED = {"name": "pruning.structured", "share": 0.5, "of": "parameters", "multiple": 4}
MAGNITUDE = {"name": "pruning.magnitude", "sparsity": 0.3, "ramp": "one_shot", "begin": 2}
PHASES = [
    {"name": "shrink", "steps": 4, "techniques": [STRUCTURED]},
    {"name": "tune", "steps": 4, "techniques": [MAGNITUDE]},
]
MESHES: dict[str, dict[str, int]] = {
    "shard=3": {"shard": 3},
    "tensor=2": {"tensor": 2},
    "pipeline=2": {"pipeline": 2},
}


def config(folder: Path, degrees: dict[str, int], **values: Any) -> RunConfig:
    model = {"name": "lenet_300_100", "hidden": [32, 24]}
    return config_of(folder, degrees, **{"model": model, "phases": PHASES, **values})


@functools.cache
def alone() -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        return run(config(Path(folder) / "alone", {}))


# 2: before the removal · 4: at it, saved with the old shapes · 5: behind it
@pytest.mark.parametrize(
    ("stop_at", "first", "then"),
    [
        (2, "shard=3", "pipeline=2"),
        (4, "pipeline=2", "tensor=2"),
        (4, "tensor=2", "shard=3"),
        (5, "pipeline=2", "shard=3"),
    ],
)
def test_a_run_stopped_around_the_removal_goes_on_as_if_it_was_not_also_on_another_mesh(
    stop_at: int, first: str, then: str, tmp_path: Path
) -> None:
    every = {"checkpoint": {"every": 1}}
    run(config(tmp_path / "run", MESHES[first], **every), stop_at=stop_at)
    resumed = run(config(tmp_path / "run", MESHES[then], **every))
    difference = compare(alone(), resumed)
    assert difference.within() and difference.masks == 0.0, difference
    assert resumed.tensors["end-0-and-then/model/fc1.weight"].shape[0] % 4 == 0 or stop_at == 5


def test_curves_go_on_and_the_summary_says_what_was_to_go_and_what_went(tmp_path: Path) -> None:
    checked = config(tmp_path / "run", {}, tracking={"every": 1}, export=["safetensors"])
    summary = Trainer(checked).fit()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 9))
    assert [line["phase"] for line in train] == ["shrink"] * 4 + ["tune"] * 4
    (removal,) = [line for line in lines if line["kind"] == "removal"]
    loaded = load(tmp_path / "run" / "artifacts" / "safetensors")
    left = sum(p.numel() for p in loaded.parameters())
    assert removal["parameters_after"] == left == summary["params"]["total"]
    technique = summary["techniques"][0]
    assert technique["name"] == "pruning.structured" and technique["holds"]
    assert technique["requested"] == {"parameters removed": 0.5}
    assert technique["achieved"]["parameters removed"] == 1 - left / removal["parameters_before"] >= 0.5
    assert technique["achieved"]["multiply-adds removed"] == pytest.approx(
        1 - removal["multiply_adds_after"] / removal["multiply_adds_before"]
    )
    assert summary["techniques"][1]["name"] == "pruning.magnitude"


def test_a_removal_in_the_last_phase_is_delivered_with_its_share_and_so_from_a_checkpoint(
    tmp_path: Path,
) -> None:
    checked = config(tmp_path / "run", {}, phases=PHASES[:1], export=["safetensors"])
    summary = Trainer(checked).fit()
    assert summary["techniques"][0]["achieved"]["parameters removed"] >= 0.5
    shapes = [p.shape for p in load(tmp_path / "run" / "artifacts" / "safetensors").parameters()]
    export(tmp_path / "run" / "checkpoints" / "step-4", ["packed"])
    assert [p.shape for p in load(tmp_path / "run" / "artifacts" / "packed").parameters()] == shapes
    assert shapes[0][0] < 32


def held_in_each_phase(values: dict[str, Any]) -> list[list[str]]:
    """One rank of a run: the parameters that it holds in each phase."""

    class Watched(Trainer):
        def _train_phase(self, stream: Any) -> None:
            held.append(list(self.assembly.engine.parameters()))
            super()._train_phase(stream)

    held: list[list[str]] = []
    checked = RunConfig.model_validate(values)
    Watched(checked, mesh=Mesh.build(checked.parallel.degrees)).fit()
    return held


def test_stages_are_cut_anew_by_the_costs_of_what_is_left(tmp_path: Path) -> None:
    """64 × 96 | 96 × 96 + 96 × 10 multiply-adds; then, with 8 neurons left in fc1, 64 × 8 + 8 × 96 | 96 × 10."""
    technique = {"name": "pruning.structured", "share": {"fc1.*": 0.9}, "most": 0.92}
    phases = [{"name": "shrink", "steps": 1, "techniques": [technique]}, {"name": "tune", "steps": 1}]
    wide = {"name": "lenet_300_100", "hidden": [96, 96]}
    checked = config(tmp_path / "run", {"pipeline": 2}, model=wide, phases=phases)
    first, last = run_on_ranks(held_in_each_phase, checked.model_dump(mode="json"), ranks=2)
    fc1, fc2, fc3 = ([f"fc{n}.weight", f"fc{n}.bias"] for n in (1, 2, 3))
    assert first == [fc1, fc1 + fc2]
    assert last == [fc2 + fc3, fc3]


def test_the_mesh_may_not_cut_through_a_head_that_is_left() -> None:
    built = build_model({"name": "gpt", "layers": 1, "heads": 4, "width": 16, "vocabulary": 7, "context": 4})
    plain = RunConfig.model_validate(
        {"model": "gpt", "data": {"source": "digits", "batch": 4}, "phases": [{"name": "a", "steps": 1}]}
    )
    plan = [{"record": {"heads": {"blocks.0.attention.query": 3, "elsewhere": 5}}}]
    assert layout_of(built, plain, []).divisible == built.layout.divisible
    assert layout_of(built, plain, plan).divisible == {
        **built.layout.divisible,
        "heads of blocks.0.attention.query": 3,
    }
