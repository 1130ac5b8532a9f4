"""The contract: every technique found, on every mesh, is the technique of one process; also across a resume.

A new technique is picked up by itself: the folder is the registry, `Technique.contract` says with which settings.
One run is handed from mesh to mesh: each trains two steps, saves, and the next one, which is cut differently, goes on.
Behind the native meshes come the engines of other libraries.
At every handing over the whole model, the masks and the techniques' state are compared with those of one process.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from forgepress.compression import techniques
from forgepress.parallel import Mesh
from forgepress.tests.engines import ENGINES
from forgepress.tests.meshes import MESHES
from forgepress.tests.ranks import run_on_ranks
from forgepress.trainer.config import RunConfig
from forgepress.trainer.step import Steps
from forgepress.trainer.verify import Difference, Trace, Traced, compare, read_trace

EVERYTHING = bool(os.environ.get("FORGEPRESS_EVERYTHING"))  # every variant on every mesh: three times as long
PLACES = {**MESHES, **ENGINES}  # name → keys of `parallel`
LEG = 2  # steps that one mesh trains


def way(variant: int) -> list[str]:
    """The meshes that a run goes through: all and all engines with a technique's first settings, else two meshes."""
    meshes = list(MESHES)
    if variant == 0 or EVERYTHING:
        return list(PLACES)
    return [meshes[(3 * variant + further) % len(meshes)] for further in (0, 4)]


def cases() -> Iterator[Any]:
    """Every technique and variant with every mesh on its way."""
    for name, kind in techniques().items():
        for variant in range(len(kind.contract)):
            for mesh in way(variant):
                yield pytest.param(name, variant, mesh, id=f"{name}-{variant}-{mesh}")


# Attention is between places of a row, of which the others' model has none.
MODELS = {
    "distillation.attention": {
        "factory": "forgepress.tests.techniques:attentive",
        "args": {"width": 8, "heads": 2},
    }
}
COSINE = {"schedule": {"name": "cosine"}}


class StopHere(Exception):
    """A session ends as if the machine had gone, right after a checkpoint."""


class Handing(Traced):
    """Also writes the whole state down after every leg; ends with its first one where a mesh has only one."""

    one_leg = True

    def _after_step(self, steps: Steps) -> None:
        super()._after_step(steps)
        if self.step % LEG == 0:
            self._dump_state(f"end-of-leg-{self.step // LEG}")
            if self.one_leg:
                self.checkpoints.wait()
                raise StopHere


def config_of(technique: dict[str, Any], degrees: dict[str, int], folder: Path, steps: int) -> RunConfig:
    values = {
        "name": folder.name,
        "seed": 3,
        "model": MODELS.get(technique["name"], {"name": "lenet_300_100"}),
        "data": {"source": "digits", "batch": 30},
        "parallel": {**degrees, "microbatches": 2},
        # decay and momentum pull at masked weights: zeros must hold against them
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_norm": 1.0} | COSINE,
        "phases": [{"name": "compress", "steps": steps, "techniques": [technique]}],
        "checkpoint": {"folder": str(folder.parent), "every": LEG, "keep_best": False},
    }
    return RunConfig.model_validate(values)


def session(values: dict[str, Any], one_leg: bool, nudge: bool) -> None:
    config = RunConfig.model_validate(values)
    trainer = Handing(config, mesh=Mesh.build(config.parallel.degrees), nudge=nudge)
    trainer.one_leg = one_leg
    try:
        trainer.fit()
    except StopHere:
        assert one_leg


def run(config: RunConfig, *, one_leg: bool = False, nudge: bool = False) -> Trace:
    run_on_ranks(session, config.model_dump(mode="json"), one_leg, nudge, ranks=config.parallel.ranks)
    return read_trace(config.run_folder)


def leg_of(trace: Trace, number: int) -> Trace:
    """What a trace holds of one leg, counted from 1: its steps, and the state at its end."""
    steps = {step: at for step, at in trace.steps.items() if (step - 1) // LEG + 1 == number}
    name = f"end-of-leg-{number}/"
    tensors = {key: tensor for key, tensor in trace.tensors.items() if key.startswith(name)}
    return Trace(steps=steps, tensors=tensors, start=trace.start)


@dataclass
class Relay:
    """One technique's run through its meshes, leg by leg as tests ask for them, and the run of one process."""

    technique: dict[str, Any]
    meshes: list[str]
    folder: Path
    alone: Trace = field(init=False)
    done: int = 0
    broken: str = ""
    nudged: Trace | None = None

    def __post_init__(self) -> None:
        """Runs the one process."""
        self.alone = run(self._config({}, "alone"))

    def until(self, mesh: str) -> tuple[int, Trace]:
        """The number of the mesh's leg and the trace of it; runs the legs that are missing up to it."""
        number = self.meshes.index(mesh) + 1
        while self.done < number:
            assert not self.broken, f"the run broke before, on {self.broken}"
            self.broken = self.meshes[self.done]
            trace = run(self._config(PLACES[self.broken], "handed"), one_leg=True)
            assert len(trace.steps) == LEG * (self.done + 1)
            self.done, self.broken = self.done + 1, ""
        return number, read_trace(self.folder / "handed")

    def rounding(self, number: int) -> Difference:
        """What one rounding error in each weight and step has grown to at the end of a leg."""
        if self.nudged is None:
            self.nudged = run(self._config({}, "nudged"), nudge=True)
        return compare(leg_of(self.alone, number), leg_of(self.nudged, number))

    def _config(self, degrees: dict[str, int], name: str) -> RunConfig:
        return config_of(self.technique, degrees, self.folder / name, LEG * len(self.meshes))


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Relay]:
    class Relays(dict[tuple[str, int], Relay]):
        def __missing__(self, key: tuple[str, int]) -> Relay:
            name, variant = key
            technique = {"name": name, **techniques()[name].contract[variant]}
            self[key] = Relay(technique, way(variant), tmp_path_factory.mktemp("relay"))
            return self[key]

    return Relays()


@pytest.mark.parametrize(("name", "variant", "mesh"), list(cases()))
def test_gives_the_result_of_one_process_also_where_another_mesh_has_begun(
    name: str, variant: int, mesh: str, relays: dict[tuple[str, int], Relay]
) -> None:
    relay = relays[name, variant]
    number, trace = relay.until(mesh)
    difference = compare(leg_of(relay.alone, number), leg_of(trace, number))
    assert difference.within() or difference.within(rounding=relay.rounding(number)), difference
    assert difference.masks == 0.0, difference
    assert len(leg_of(trace, number).steps) == LEG
