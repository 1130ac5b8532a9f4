"""What a run says while it goes on: lines for the trackers, the progress bar, and times that count only steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..compression import Check
from ..parallel import Mesh
from .config import RunConfig
from .progress import Progress
from .step import Steps
from .trackers import open_trackers

Checks = Mapping[str, Sequence[Check]]
"""Requested against achieved, by a technique's place in the list and its name."""


class Logbook:
    """Metrics to the trackers and the terminal; only rank 0 writes, all ranks call."""

    def __init__(self, config: RunConfig, mesh: Mesh, *, total_steps: int, step: int, resumed: bool) -> None:
        """Open trackers and progress for a run of ``total_steps`` that stands at ``step``."""
        self._mesh = mesh
        self._every = config.tracking.every
        self._batch = config.data.batch
        self.trackers = open_trackers(
            config.tracking,
            config.run_folder,
            step if resumed else None,
            rank=mesh.rank,
            name=config.name,
            config=config.model_dump(mode="json"),
        )
        self.progress = Progress(total_steps, self._every, first_step=step, rank=mesh.rank)
        self.final_loss: float | None = None
        self._phase = ""
        self._late: list[int | None] = []  # slowest ranks of the last lines
        self._named: int | None = None
        self._window = (step, time.perf_counter(), 0.0)
        self._not_steps = 0.0  # seconds since the window began that went into evaluation or checkpoints

    def begin_phase(self, name: str, step: int, wait_seconds: float) -> None:
        """A phase begins (or goes on) after ``step``."""
        self._phase = name
        self.progress.phase(name)
        self._window, self._not_steps = (step, time.perf_counter(), wait_seconds), 0.0

    def due(self, step: int, *, last: bool) -> bool:
        """Whether this step has a line."""
        return last or step % self._every == 0

    def after_step(
        self,
        step: int,
        steps: Steps,
        *,
        last: bool,
        samples: int,
        wait_seconds: float,
        checks: Checks,
        binds: Callable[[], str] = lambda: "",
    ) -> None:
        """A line every ``tracking.every`` steps and at the end of a phase. Collective at those steps."""
        if not self.due(step, last=last):
            return
        since, then, waited = self._window
        now = time.perf_counter()
        seconds = max(now - then - self._not_steps, 1e-9)
        self._window, self._not_steps = (step, now, wait_seconds), 0.0
        self.final_loss = steps.take_loss(step - since)
        terms = steps.terms()
        slowest = steps.late.slowest(seconds / max(step - since, 1))
        if self._mesh.rank:
            return
        values: dict[str, Any] = {
            "step": step,
            "phase": self._phase,
            "kind": "train",
            "loss": self.final_loss,
            "learning_rate": steps.learning_rate,
            "gradient_norm": None if steps.norm is None else float(steps.norm),
            "samples_per_second": (step - since) * self._batch / seconds,
            "data_wait_fraction": (wait_seconds - waited) / seconds,
        }
        if steps.skipped:
            values["skipped_steps"] = steps.skipped
        if slowest is not None:
            values |= {"slowest_rank": slowest[0], "slowest_rank_late_seconds": slowest[1]}
        logged = {name: float(value) for name, value in steps.chain.run.logged.items()}
        self.trackers.log(values | _achieved(checks) | logged | terms)
        self.progress.update(
            step, loss=self.final_loss, samples=samples, wait_seconds=wait_seconds, binds=binds
        )
        self._name_slowest(step, slowest)

    def _name_slowest(self, step: int, slowest: tuple[int, float] | None) -> None:
        """A line where the same rank was late three times in a row; said once until another one is."""
        rank = slowest[0] if slowest is not None else None
        self._late = [*self._late[-2:], rank]
        if slowest is not None and self._late == [rank] * 3 and rank != self._named:
            self._named = rank
            self.say(
                f"step {step}  rank {rank} keeps the others waiting: its forward ends {slowest[1] * 1e3:.0f} ms after "
                f"the first one's; logs/rank-{rank}.log says on which host it runs"
            )

    def evaluation(self, step: int, metrics: Mapping[str, float], checks: Checks) -> None:
        """What the held-out rows said."""
        if self._mesh.rank or not metrics:
            return
        line = {"step": step, "phase": self._phase, "kind": "evaluate", **metrics}
        self.trackers.log(line | _achieved(checks))
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.progress.print(f"step {step}  {self._phase}  {shown}")

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Something happened that curves should show: the end of a phase, a checkpoint."""
        if self._mesh.rank == 0:
            self.trackers.log({"step": step, "phase": self._phase, "kind": kind, **values})

    def say(self, text: str) -> None:
        """A line on the terminal, above the progress bar."""
        self.progress.print(text)

    def leave_out(self, seconds: float) -> None:
        """Time that is not a step's, so that samples per second stay those of training."""
        self._not_steps += seconds

    def close(self) -> None:
        """End the bar and all trackers."""
        self.progress.close()
        self.trackers.close()


def _achieved(checks: Checks) -> dict[str, float]:
    """``pruning.magnitude/sparsity`` → achieved value."""
    return {f"{s.split('.', 1)[1]}/{c.quantity}": c.achieved for s, lines in checks.items() for c in lines}
