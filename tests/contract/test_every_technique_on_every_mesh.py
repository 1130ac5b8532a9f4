"""The contract: every technique found, on every mesh, is the technique of one process; also across a resume.

A new technique is picked up by itself: the folder is the registry, `Technique.contract` says with which settings.
"""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from forgepress.compression import techniques
from forgepress.parallel import Mesh
from forgepress.tests.meshes import MESHES, THEN
from forgepress.tests.ranks import run_on_ranks
from forgepress.trainer.config import RunConfig
from forgepress.trainer.step import Steps
from forgepress.trainer.verify import Trace, Traced, compare, read_trace

EVERYTHING = bool(os.environ.get("FORGEPRESS_EVERYTHING"))  # every variant on every mesh: three times as long


def cases() -> list[Any]:
    """Every technique on every mesh with its first settings; its further ones on three meshes each, in turn."""
    meshes, found = list(MESHES), []
    for name, kind in techniques().items():
        for variant in range(len(kind.contract)):
            some = {meshes[(3 * variant + further) % len(meshes)] for further in range(3)}
            for mesh in meshes:
                if variant == 0 or EVERYTHING or mesh in some:
                    found.append(pytest.param(name, variant, mesh, id=f"{name}-{variant}-{mesh}"))
    return found


# Attention is between places of a row, of which the others' model has none.
MODELS = {
    "distillation.attention": {
        "factory": "forgepress.tests.techniques:attentive",
        "args": {"width": 8, "heads": 2},
    }
}
SAVE_AT, STEPS = 4, 8
COSINE = {"schedule": {"name": "cosine"}}


class StopHere(Exception):
    """The first session ends in mid-ramp, right after its checkpoint."""


class Stopping(Traced):
    def _after_step(self, steps: Steps) -> None:
        super()._after_step(steps)
        if self.step == SAVE_AT:
            self.checkpoints.wait()
            raise StopHere


def config_of(technique: dict[str, Any], degrees: dict[str, int], folder: Path) -> dict[str, Any]:
    values = {
        "name": folder.name,
        "seed": 3,
        "model": MODELS.get(technique["name"], {"name": "lenet_300_100"}),
        "data": {"source": "digits", "batch": 30},
        "parallel": {**degrees, "microbatches": 2},
        # decay and momentum pull at masked weights: zeros must hold against them
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_norm": 1.0} | COSINE,
        "phases": [{"name": "compress", "steps": STEPS, "techniques": [technique]}],
        "checkpoint": {"folder": str(folder.parent), "every": SAVE_AT, "keep_best": False},
    }
    return RunConfig.model_validate(values).model_dump(mode="json")


def session(values: dict[str, Any], stop: bool) -> None:
    config = RunConfig.model_validate(values)
    trainer = (Stopping if stop else Traced)(config, mesh=Mesh.build(config.parallel.degrees))
    try:
        trainer.fit()
    except StopHere:
        assert stop


def run(values: dict[str, Any], *, stop: bool = False) -> Trace:
    config = RunConfig.model_validate(values)
    run_on_ranks(session, values, stop, ranks=config.parallel.ranks)
    return read_trace(config.run_folder)


def settings_of(name: str, variant: int) -> dict[str, Any]:
    return {"name": name, **techniques()[name].contract[variant]}


@functools.cache
def alone(name: str, variant: int) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        return run(config_of(settings_of(name, variant), {}, Path(folder) / "alone"))


@pytest.mark.parametrize(("name", "variant", "mesh"), cases())
def test_gives_the_result_of_one_process_also_when_another_mesh_goes_on(
    name: str, variant: int, mesh: str, tmp_path: Path
) -> None:
    technique = settings_of(name, variant)
    run(config_of(technique, MESHES[mesh], tmp_path / "run"), stop=True)
    resumed = run(config_of(technique, MESHES[THEN[mesh]], tmp_path / "run"))
    difference = compare(alone(name, variant), resumed)
    assert difference.within(), difference
    assert difference.masks == 0.0, difference
    assert len(resumed.steps) == STEPS
