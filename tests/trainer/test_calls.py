"""What the trainer lets techniques do besides moving weights: inner losses, columns, small state, only looking."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.tests.sessions import OWN, config_of, run
from forgepress.trainer.config import RunConfig
from forgepress.trainer.verify import Trace, compare

MESHES: dict[str, dict[str, int]] = {
    "replicate=2": {
        "replicate": 2
    },  # torch DDP divides by the ranks: the seed of the backward makes up for it
    "shard=3": {"shard": 3},
    "tensor=2": {"tensor": 2},
    "pipeline=2": {"pipeline": 2},
    "pipeline=2 x shard=2": {"pipeline": 2, "shard": 2},
}
WATCHER = f"{OWN}Watcher"
PHASES = [
    {"name": "pull", "steps": 6, "techniques": [{"name": f"{OWN}InnerLoss"}]},
    {"name": "look", "steps": 3, "techniques": [{"name": WATCHER}]},
    {"name": "on", "steps": 2},
]


def config(folder: Path, degrees: dict[str, int], **values: Any) -> RunConfig:
    return config_of(folder, degrees, **{"phases": PHASES, **values})


@functools.cache
def alone(strength: float = 0.5) -> tuple[Trace, Path]:
    folder = Path(tempfile.mkdtemp()) / "alone"
    technique = {"name": f"{OWN}InnerLoss", "strength": strength}
    return run(config(folder, {}, phases=[PHASES[0] | {"techniques": [technique]}, *PHASES[1:]])), folder


def plan_of(folder: Path) -> list[dict[str, Any]]:
    newest = max((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "state.json").read_text())
    return state["plan"]


@pytest.mark.parametrize("mesh", MESHES)
def test_an_inner_loss_and_a_watched_activation_are_those_of_one_process(mesh: str, tmp_path: Path) -> None:
    there = run(config(tmp_path / "run", MESHES[mesh]))
    expected, folder = alone()
    difference = compare(expected, there)
    assert difference.within(), difference
    ours, theirs = plan_of(tmp_path / "run"), plan_of(folder)
    sums, wanted = (p[0]["record"]["row_sums"]["fc2.weight"] for p in (ours, theirs))
    torch.testing.assert_close(torch.tensor(sums), torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    assert (
        plan_of(tmp_path / "run")[1]["record"]["largest"]
        == pytest.approx(theirs[1]["record"]["largest"], rel=1e-5)
        != 0.0
    )


@pytest.mark.parametrize("mesh", ["replicate=2", "pipeline=2 x shard=2"])
def test_the_trackers_get_an_inner_loss_of_the_whole_mesh(mesh: str, tmp_path: Path) -> None:
    tracking = {"tracking": {"every": 1}, "phases": PHASES[:1]}
    run(config(tmp_path / "there", MESHES[mesh], **tracking))
    run(config(tmp_path / "alone", {}, **tracking))
    there, expected = (terms(tmp_path / name) for name in ("there", "alone"))
    assert len(expected) == 6 and min(expected) > 0.0
    assert there == pytest.approx(expected, rel=1e-4)


def terms(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["inner_loss"] for line in lines if line["kind"] == "train"]


def test_an_inner_loss_moves_the_layers_before_it() -> None:
    with_it, without = alone()[0].tensors, alone(1e-9)[0].tensors
    assert not torch.allclose(with_it["end-0/model/fc1.weight"], without["end-0/model/fc1.weight"], rtol=1e-3)


def test_a_phase_that_only_looks_moves_nothing() -> None:
    tensors = alone()[0].tensors
    for name in ("fc1.weight", "fc2.bias", "fc3.weight"):
        assert torch.equal(tensors[f"end-1/model/{name}"], tensors[f"end-0/model/{name}"])
        assert not torch.equal(tensors[f"end-2/model/{name}"], tensors[f"end-1/model/{name}"])


@pytest.mark.parametrize(("stop", "mesh", "then"), [(4, "shard=3", "tensor=2"), (7, "pipeline=2", "shard=3")])
def test_state_of_another_size_than_its_weight_survives_a_resume_on_another_mesh(
    stop: int, mesh: str, then: str, tmp_path: Path
) -> None:
    every = {"every": 1}
    run(config(tmp_path / "run", MESHES[mesh], checkpoint=every), stop_at=stop)
    resumed = run(config(tmp_path / "run", MESHES[then], checkpoint=every))
    expected, folder = alone()
    assert compare(expected, resumed).within()
    sums, wanted = (plan_of(p)[0]["record"]["row_sums"]["fc2.weight"] for p in (tmp_path / "run", folder))
    torch.testing.assert_close(torch.tensor(sums), torch.tensor(wanted), rtol=1e-5, atol=1e-5)
