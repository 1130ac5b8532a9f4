"""Runs of the whole trainer on the tests' ranks, stopped where a test wants, and what they leave."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..parallel import Mesh
from ..trainer.assembly import Assembly
from ..trainer.config import RunConfig
from ..trainer.step import Steps
from ..trainer.verify import Trace, Traced, read_trace
from .ranks import RanksFailed, run_on_ranks

OWN = "forgepress.tests.techniques:"


class StopHere(Exception):
    """The session ends as if the machine had gone, right after a checkpoint."""


class Watched(Traced):
    """Also writes down with which weights and optimizer state a phase begins; may end after a step's checkpoint."""

    stop_at = 0

    def _then(self) -> Assembly:
        assembly = super()._then()
        held = {f"model/{n}": t for n, t in assembly.engine.parameters().items()}
        held |= {f"moment/{key}": w.wrap(t) for key, (w, t) in assembly.moments().items()}
        held |= {f"count/{key}": t for key, t in assembly.counts().items()}
        self._dump(f"end-{self.phase_index - 1}-and-then", held)
        return assembly

    def _after_step(self, steps: Steps) -> None:
        super()._after_step(steps)
        if steps.chain.run.step < steps.chain.run.steps:
            self._maybe_stop()

    def _end_of_phase(self) -> None:
        super()._end_of_phase()
        self._maybe_stop()

    def _maybe_stop(self) -> None:
        if self.step == self.stop_at:
            self.checkpoints.wait()
            raise StopHere


def config_of(folder: Path, degrees: dict[str, int], **values: Any) -> RunConfig:
    """A small run on scikit-learn's digits in ``folder``; ``values`` are top-level words of the config."""
    checkpoint = {
        "folder": str(folder.parent),
        "every": 3,
        "keep_best": False,
        **values.pop("checkpoint", {}),
    }
    everything = {
        "name": folder.name,
        "seed": 5,
        "model": {"name": "lenet_300_100", "hidden": [16, 12]},
        "data": {"source": "digits", "batch": 30},
        "parallel": {**degrees, "microbatches": 2},
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_norm": 1.0},
        **values,
        "checkpoint": checkpoint,
    }
    return RunConfig.model_validate(everything)


def torchvision_operators() -> None:
    """A torchvision built for CUDA fails on a CPU torch unless its operators are declared. For worker processes."""
    torch = import_module("torch")  # not a global: cloudpickle would take torch.ops along with this function
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library._kept_by_the_tests = library  # the operators live as long as it does


def session(values: dict[str, Any], stop_at: int) -> None:
    """One rank of a run."""
    torchvision_operators()
    config = RunConfig.model_validate(values)
    trainer = Watched(config, mesh=Mesh.build(config.parallel.degrees))
    trainer.stop_at = stop_at
    try:
        trainer.fit()
    except StopHere:
        assert stop_at


def run(config: RunConfig, *, stop_at: int = 0) -> Trace:
    """Run ``config`` on as many ranks as its mesh has."""
    run_on_ranks(session, config.model_dump(mode="json"), stop_at, ranks=config.parallel.ranks)
    return read_trace(config.run_folder)


def traced(values: dict[str, Any], kill_at: int, nudge: bool) -> None:
    """One rank of a proof's run."""
    config = RunConfig.model_validate(values)
    Traced(config, mesh=Mesh.build(config.parallel.degrees), kill_at=kill_at, nudge=nudge).fit()


def on_ranks(
    function: str,
    values: dict[str, Any],
    kill_at: int,
    nudge: bool,
    *,
    ranks: int,
    timeout: float,
    may_be_killed: bool,
) -> list[Any]:
    """Stands in for `launch`: the proofs' runs on the tests' own processes."""
    assert function == "forgepress.trainer.verify:trace"
    try:
        return run_on_ranks(traced, values, kill_at, nudge, ranks=ranks, timeout=timeout)
    except RanksFailed as failed:
        if may_be_killed and "exit code -9" in str(failed):
            return []
        raise
