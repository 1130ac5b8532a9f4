"""A run from config to result: phases of steps, evaluation, checkpoints, and what is delivered at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from ..compression import Check
from ..dataloading import Batch
from ..errors import CheckpointError, ConfigError, Preempted
from ..parallel import Mesh, join
from .assembly import Assembly, assemble, finalize, next_phase
from .checkpoint import Checkpoints, Saved
from .config import PhaseConfig, RunConfig
from .data import RunData, open_data
from .delivery import deliver
from .evaluation import evaluate
from .interrupts import Interrupts
from .precision import LossScaler
from .progress import Progress
from .run_folder import claim
from .step import Steps
from .trackers import open_trackers

_log = logging.getLogger(__name__)
_EXPECT_EFFECT_AFTER = 3  # steps after which a technique must show that it acts
_SLOW_WORK = 600.0  # seconds that evaluation or export may take without being taken for a hang


class Trainer:
    """Trains, compresses and delivers one model as its config says; every rank of the mesh makes one.

    In a script of your own: ``Trainer(RunConfig.load("config.yaml")).fit()``.
    """

    def __init__(
        self, config: RunConfig, *, mesh: Mesh | None = None, fresh: bool = False, watch: Any = None
    ) -> None:
        """mesh: where this process stands (None: alone).   fresh: ignore and replace what the run folder holds.
        watch: is told where the run stands (``beat(step, where, allow)``), for those who look out for hangs.
        """
        self.config = config
        self.mesh = mesh or Mesh()
        self.fresh = fresh
        self.step = 0  # optimizer steps of the whole run so far
        self.phase_index = 0
        self.results: list[dict[str, Any]] = []  # one line for every finished phase
        self.best: dict[str, Any] | None = None
        self.checks: dict[str, list[dict[str, Any]]] = {}
        self._beat = watch.beat if watch is not None else _nobody
        self.final_loss = float("nan")
        self._seconds_before = 0.0  # of the sessions before this one
        self.samples = 0
        self._started = time.perf_counter()

    # ── the story

    def fit(self) -> dict[str, Any]:
        """Run all phases and deliver; goes on from the newest checkpoint of the run if there is one.

        returns: the summary (also in summary.json) on rank 0, {} on the others.
        raises:  ConfigError, DataError, CheckpointError before the first step; Preempted after a save on
            request; DivergenceError, NoOpError.
        """
        config, mesh = self.config, self.mesh
        with claim(config, mesh, fresh=self.fresh):
            self.data = open_data(config, mesh)
            self.phase_steps = [self._steps_of(phase) for phase in config.phases]
            self.scaler = LossScaler() if config.precision == "fp16" else None
            self.checkpoints = Checkpoints(
                config.run_folder / "checkpoints",
                mesh,
                keep=config.checkpoint.keep,
                asynchronous=config.checkpoint.asynchronous,
            )
            saved = self._begin()
            self.trackers = open_trackers(
                config.tracking,
                config.run_folder,
                self.step if saved else None,
                rank=mesh.rank,
                name=config.name,
                config=config.model_dump(mode="json"),
            )
            self.progress = Progress(
                sum(self.phase_steps), config.tracking.every, first_step=self.step, rank=mesh.rank
            )
            self.interrupts = Interrupts(mesh)
            try:
                return self._phases(saved)
            finally:
                self._close()

    def _phases(self, saved: Saved | None) -> dict[str, Any]:
        stream = self.data.train.stream()
        if saved is not None:
            self.progress.print(f"resumed from step {self.step} ({saved.folder})")
        self._started = time.perf_counter()
        while True:
            self._train_phase(stream)
            if self.phase_index + 1 == len(self.config.phases):
                break
            self.phase_index += 1
            self.assembly = self._then()
        return self._deliver()

    def _train_phase(self, stream: Iterator[Batch]) -> None:
        phase = self.assembly.phase
        run = self.assembly.chain.run
        self.progress.phase(phase.name)
        steps = Steps(self.config, self.assembly, self.mesh, self.scaler)
        self._window = (self.step, time.perf_counter(), self.data.train.wait_seconds)
        trained = run.step < run.steps
        while run.step < run.steps:
            self._beat(self.step, "data")
            batch = next(stream)
            steps.train_step(batch, self.step + 1, self._beat)
            self.step += 1
            self.samples += batch.global_rows
            self._after_step(steps)
        if trained or len(self.results) <= self.phase_index:
            self._end_of_phase(steps)

    def _after_step(self, steps: Steps) -> None:
        run = steps.chain.run
        last = run.step == run.steps
        if run.step == min(_EXPECT_EFFECT_AFTER, run.steps):
            self._demand()
        if self.step % self.config.tracking.every == 0 or last:
            self._log_step(steps)
        if _due(self.config.evaluate.every, self.step) and not last:
            self._evaluate()
        if _due(self.config.checkpoint.every, self.step) and not last:
            self._save()
        if self.interrupts.agreed(self.step) and not (last and self.phase_index + 1 == len(self.phase_steps)):
            self._save()
            self.checkpoints.wait()
            raise Preempted(
                f"asked to stop: step {self.step} is saved in {self.checkpoints.folder}; the same command goes on there"
            )

    def _end_of_phase(self, steps: Steps) -> None:
        metrics = self._evaluate()
        line = {"phase": self.assembly.phase.name, "step": self.step, "metrics": metrics}
        self.results = [*self.results[: self.phase_index], line]
        if self.mesh.rank == 0:
            self.trackers.log({"kind": "phase", **line, "metrics": None, **metrics})
        self._save()

    # ── beginning, resuming

    def _begin(self) -> Saved | None:
        saved, notes = self.checkpoints.newest()
        for note in notes:
            self._tell(note)
        if saved is None:
            if notes:
                raise CheckpointError(
                    f"no undamaged checkpoint in {self.checkpoints.folder}; start the run over with --fresh"
                )
            self.assembly = self._assemble(0, [])
            return None
        self._check_same_run(saved)
        state = saved.state
        self.step, self.phase_index = saved.step, state["phase"]
        self.assembly = self._assemble(self.phase_index, state["plan"])
        self.checkpoints.restore(saved, self.assembly)
        self.data.train.load_state_dict(state["data"])
        self.results, self.best = state["results"], state["best"]
        self._seconds_before, self.samples = state["seconds"], state["samples"]
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        return saved

    def _check_same_run(self, saved: Saved) -> None:
        here = self._spec(self.phase_index)
        there = saved.state["model"]
        if here != there:
            raise ConfigError(
                f"model: {here} given, but the checkpoint {saved.folder} holds {there}; "
                "take another name for this run, or start it over with --fresh"
            )
        phases = [p.name for p in self.config.phases]
        if saved.state["phase"] >= len(phases) or phases[saved.state["phase"]] != saved.state["phase_name"]:
            raise ConfigError(
                f"phases: {', '.join(phases)} given, but {saved.folder} was saved in phase number "
                f"{saved.state['phase'] + 1}, {saved.state['phase_name']!r}; keep the phases that have begun, "
                "take another name for this run, or start it over with --fresh"
            )

    def _spec(self, index: int) -> dict[str, Any]:
        from .models import build_model

        return build_model(self.config.model, seed=self.config.seed, data=self.data.facts, device="meta").spec

    def _assemble(self, index: int, plan: list[dict[str, Any]]) -> Assembly:
        return assemble(
            self.config,
            self.config.phases[index],
            plan,
            self.mesh,
            self.data.facts,
            steps=self.phase_steps[index],
            items_per_row=self.data.items_per_row,
        )

    def _then(self) -> Assembly:
        self._beat(self.step, "phase", _SLOW_WORK)
        index = self.phase_index
        return next_phase(
            self.assembly,
            self.config,
            self.config.phases[index],
            self.mesh,
            self.data.facts,
            steps=self.phase_steps[index],
        )

    def _steps_of(self, phase: PhaseConfig) -> int:
        return phase.steps if phase.steps is not None else (phase.epochs or 0) * len(self.data.train)

    # ── what happens between steps

    def _demand(self) -> None:
        """Requested against achieved, or the run ends here."""
        lines = self.assembly.chain.demand()
        self.checks = {scope: [_as_json(c) for c in checks] for scope, checks in lines.items()}

    def _log_step(self, steps: Steps) -> None:
        since, then, waited = self._window
        now, wait_seconds = time.perf_counter(), self.data.train.wait_seconds
        count = max(self.step - since, 1)
        loss = steps.take_loss(count)
        self._window = (self.step, now, wait_seconds)
        self.final_loss = loss
        if self.mesh.rank:
            return
        seconds = max(now - then, 1e-9)
        values: dict[str, Any] = {
            "step": self.step,
            "phase": self.assembly.phase.name,
            "kind": "train",
            "loss": loss,
            "learning_rate": steps.learning_rate,
            "gradient_norm": float(steps.norm) if steps.norm is not None else None,
            "samples_per_second": count * self.config.data.batch / seconds,
            "data_wait_fraction": (wait_seconds - waited) / seconds,
        }
        if steps.skipped:
            values["skipped_steps"] = steps.skipped
        for scope, checks in self.checks.items():
            values |= {f"{scope.split('.', 1)[1]}/{c['quantity']}": c["achieved"] for c in checks}
        values |= {k: float(v) for k, v in steps.chain.run.logged.items()}
        self.trackers.log(values)
        self.progress.update(self.step, loss=loss, samples=self.samples, wait_seconds=wait_seconds)

    def _evaluate(self) -> dict[str, float]:
        self._beat(self.step, "evaluate", _SLOW_WORK)
        began = time.perf_counter()
        metrics = evaluate(self.assembly, self.data, self.mesh, self._metrics())
        self._demand()
        if self.mesh.rank == 0 and metrics:
            self.trackers.log(
                {"step": self.step, "phase": self.assembly.phase.name, "kind": "evaluate", **metrics}
                | {
                    f"{s.split('.', 1)[1]}/{c['quantity']}": c["achieved"]
                    for s, cs in self.checks.items()
                    for c in cs
                }
            )
            shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.progress.print(f"step {self.step}  {self.assembly.phase.name}  {shown}")
        if metrics and self.config.checkpoint.keep_best:
            self._note_best(metrics)
        since, then, waited = self._window
        self._window = (since, then + time.perf_counter() - began, waited)  # not a step's time
        return metrics

    def _note_best(self, metrics: dict[str, float]) -> None:
        wanted = self.config.evaluate.best
        name, mode = (wanted.metric, wanted.mode) if wanted else ("loss", "min")
        if name not in metrics:
            raise ConfigError(
                f"evaluate.best.metric={name!r} is not among the metrics {', '.join(metrics)}; name one of them"
            )
        sign = 1.0 if mode == "max" else -1.0
        same_phase = self.best is not None and self.best["phase"] == self.phase_index
        if self.best is None or not same_phase or sign * (metrics[name] - self.best["value"]) > 0:
            # A later phase is a smaller model: its best counts, however good the dense one was.
            self.best = {"phase": self.phase_index, "metric": name, "value": metrics[name], "step": self.step}
            if self.assembly.chain.run.step < self.assembly.chain.run.steps:
                self._save()

    def _metrics(self) -> tuple[str, ...]:
        return self.config.evaluate.metrics

    def _save(self) -> None:
        self._beat(self.step, "checkpoint", _SLOW_WORK)
        self._demand()
        self.checkpoints.save(
            self.step,
            self.assembly,
            {
                "phase": self.phase_index,
                "phase_name": self.assembly.phase.name,
                "model": self._spec(self.phase_index),
                "plan": self.assembly.plan,
                "data": self.data.train.state_dict(),
                "results": self.results,
                "best": self.best,
                "scaler": self.scaler.state_dict() if self.scaler else None,
                "seconds": self._seconds(),
                "samples": self.samples,
                "mesh": self.mesh.degrees,
            },
            best=self.best["step"] if self.best else None,
        )
        if self.mesh.rank == 0:
            self.trackers.log({"step": self.step, "phase": self.assembly.phase.name, "kind": "checkpoint"})

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    # ── the end

    def _deliver(self) -> dict[str, Any]:
        self._beat(self.step, "deliver", _SLOW_WORK)
        self._demand()
        seconds = self._seconds()
        plan, whole = finalize(self.assembly, self.config, self.mesh, self.data.facts)
        self.checkpoints.wait()
        return deliver(self, plan, whole, seconds)

    @property
    def wait_fraction(self) -> float:
        """Share of this session's training time that went into waiting for data."""
        return self.data.train.wait_seconds / max(time.perf_counter() - self._started, 1e-9)

    def technique_lines(self) -> list[dict[str, Any]]:
        """Requested against achieved of every technique of the last phase, for the summary."""
        lines = []
        for scope, checks in self.checks.items():
            name = scope.split(".", 1)[1]
            requested = {c["quantity"]: c["requested"] for c in checks}
            lines.append(
                {
                    "name": name,
                    "requested": requested,
                    "achieved": {c["quantity"]: c["achieved"] for c in checks},
                }
            )
        return lines

    def _tell(self, text: str) -> None:
        if self.mesh.rank == 0:
            print(text, flush=True)

    def _close(self) -> None:
        self.interrupts.close()
        self.progress.close()
        self.trackers.close()
        self.data.close()
        self.checkpoints.close()


def train(config: RunConfig, *, fresh: bool = False, place: Any = None) -> None:
    """Train in this process as one rank of what was launched (``place``: its ``watch`` is told the progress)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rank, world = (place.rank, place.world) if place is not None else (0, 1)
    meeting = (
        f"tcp://{place.store_address}:{place.store_port}"
        if world > 1 and place.launched_by == "slurm"
        else None
    )
    with join(device, rank=rank, ranks=world, meeting=meeting, timeout=config.parallel.timeout) as device:
        mesh = Mesh.build(config.parallel.degrees, device=device)
        Trainer(config, mesh=mesh, fresh=fresh, watch=getattr(place, "watch", None)).fit()


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _as_json(check: Check) -> dict[str, Any]:
    return {"quantity": check.quantity, "requested": check.requested, "achieved": check.achieved}


def _nobody(step: int, where: str, allow: float = 0.0) -> None:
    """Nobody looks out for this run."""
