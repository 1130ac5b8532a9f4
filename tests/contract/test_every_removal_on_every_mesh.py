"""The contract of techniques that remove units: on every mesh, what is left and trains on is that of one process.

A phase ends with the removal and the next one trains what is left, on a mesh that is built anew. Runs with the first
settings are stopped behind the removal and go on on another mesh.
"""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.compression import techniques
from forgepress.tests.engines import ENGINES
from forgepress.tests.meshes import MESHES, THEN
from forgepress.tests.sessions import config_of, run
from forgepress.trainer.config import RunConfig
from forgepress.trainer.verify import Trace, compare

EVERYTHING = bool(os.environ.get("FORGEPRESS_EVERYTHING"))  # every case on every mesh
NETS = "forgepress.tests.removals:"
SLIMMING = {"name": "pruning.network_slimming", "multiple": 4, "strength": 0.02}
STRUCTURED = {"name": "pruning.structured", "multiple": 4, "heads_multiple": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "slimming": ("convolutions", {**SLIMMING, "share": 0.4}),
    "structured-taylor": ("attention", {**STRUCTURED, "score": "taylor", "share": 0.5, "of": "parameters"}),
    "structured-activation": ("convolutions", {**STRUCTURED, "score": "activation", "share": 0.3}),
}
STOP_AT = 6  # two steps behind the removal


def config(case: str, degrees: dict[str, Any], folder: Path) -> RunConfig:
    net, technique = CASES[case]
    phases = [{"name": "shrink", "steps": 4, "techniques": [technique]}, {"name": "tune", "steps": 4}]
    return config_of(
        folder,
        degrees,
        model={"factory": f"{NETS}{net}"},
        # a pipeline fills the last, uneven batch with copies of rows, which batch normalisation would count
        data={"source": "digits", "batch": 30, "tail": "drop"},
        phases=phases,
    )


def way(case: str) -> list[str]:
    """The meshes that a case is tried on: all with the first settings, else those that cut most differently."""
    every = EVERYTHING or case == next(iter(CASES))
    return list(MESHES) if every else ["shard=3", "tensor=2", "pipeline=2 x shard=2"]


def named(case: str, place: str) -> Any:
    """Parameters of a test, with a name that docs/support.py reads."""
    return pytest.param(case, place, id=f"{CASES[case][1]['name']}-{list(CASES).index(case)}-{place}")


@functools.cache
def alone(case: str) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        return run(config(case, {}, Path(folder) / "alone"))


def test_every_technique_that_removes_units_is_proven_here() -> None:
    removing = {name for name, kind in techniques().items() if kind.traces}
    assert removing == {technique["name"] for _, technique in CASES.values()}


@pytest.mark.parametrize(("case", "mesh"), [named(case, mesh) for case in CASES for mesh in way(case)])
def test_gives_the_result_of_one_process_with_what_is_left_also_on_another_mesh(
    case: str, mesh: str, tmp_path: Path
) -> None:
    resumes = case == next(iter(CASES))
    there = run(config(case, MESHES[mesh], tmp_path / "run"), stop_at=STOP_AT if resumes else 0)
    if resumes:
        there = run(config(case, MESHES[THEN[mesh]], tmp_path / "run"))
    difference = compare(alone(case), there)
    assert difference.within() and difference.masks == 0.0, difference
    assert len(there.steps) == 8


@pytest.mark.parametrize(
    ("case", "engine"),
    [
        *(named("slimming", engine) for engine in (ENGINES if EVERYTHING else ["zero-3"])),
        named("structured-taylor", "accelerate-fsdp2"),
    ],
)
def test_gives_the_result_of_one_process_with_what_is_left_on_other_engines(
    case: str, engine: str, tmp_path: Path
) -> None:
    there = run(config(case, ENGINES[engine], tmp_path / "run"))
    difference = compare(alone(case), there)
    assert difference.within() and difference.masks == 0.0, difference
    assert len(there.steps) == 8


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_is_narrower_and_is_what_was_trained_before(case: str) -> None:
    tensors = alone(case).tensors
    before = {k.removeprefix("end-0/model/"): t for k, t in tensors.items() if k.startswith("end-0/model/")}
    after = {name: tensors[f"end-0-and-then/model/{name}"] for name in before}
    cut = [name for name in before if after[name].shape != before[name].shape]
    assert cut
    for name in cut:  # each narrower tensor is a selection of the old one's entries
        old, new = before[name].unique(), after[name].unique()
        assert torch.isin(new, old).all()
