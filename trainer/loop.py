"""A run from config to result: phases of steps, evaluation, checkpoints, and what is delivered at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from ..compression import Check
from ..dataloading import Batch
from ..errors import CheckpointError, Preempted
from ..parallel import Mesh
from .assembly import Assembly, assemble
from .best import Best, better
from .boundary import finalize, next_phase
from .checkpoint import Checkpoints, Saved
from .config import PhaseConfig, RunConfig
from .data import open_data
from .delivery import deliver, removals, technique_lines, with_removal
from .evaluation import evaluate
from .interrupts import Interrupts
from .logbook import Logbook
from .models import build_model
from .precision import LossScaler, emulated, needs_scaler, tiny_as_zero
from .preflight import refuse
from .run_folder import claimed, keep_config, session
from .same_everywhere import refuse_uneven_data
from .same_run import bound_to_phase, refuse_another_run
from .step import Steps

_EXPECT_EFFECT_AFTER = 3  # steps after which a technique must show that it acts
_SLOW_WORK = 600.0  # seconds that export or evaluation's first batch may take without being taken for a hang


class Trainer:
    """Trains, compresses and delivers one model as its config says; every rank of the mesh makes one.

    In a script of your own: ``Trainer(RunConfig.load("config.yaml")).fit()``.
    """

    def __init__(
        self, config: RunConfig, *, mesh: Mesh | None = None, fresh: bool = False, watch: Any = None
    ) -> None:
        """mesh: where this process stands (None: alone).   fresh: replace what the run folder holds.
        watch: is told where the run stands (``beat(step, where, allow)``), for those who look out for hangs.
        """
        self.mesh = mesh or Mesh()
        self.config = config.on(self.mesh.world)
        self.fresh = fresh
        self.step = 0  # optimizer steps of the whole run so far
        self.phase_index = 0
        self.samples = 0
        self.results: list[dict[str, Any]] = []  # one line for every finished phase
        self.checks: dict[str, list[Check]] = {}
        self._best: Best | None = None
        self._saved = (-1, -1)  # step and number of finished phases of the last save
        self._beat = watch.beat if watch is not None else _nobody
        self._seconds_before = 0.0  # of the sessions before this one
        self._started = time.perf_counter()

    # ── the story

    def fit(self) -> dict[str, Any]:
        """Run all phases and deliver; goes on from the newest checkpoint of the run if there is one.

        returns: the summary (also in summary.json) on rank 0, {} on the others.
        raises:  ConfigError, DataError, CheckpointError before the first step; Preempted after a save on
            request; DivergenceError, NoOpError.
        """
        config, mesh = self.config, self.mesh
        self.data = open_data(config, mesh)
        refuse(config, mesh.world, self.data.source)
        refuse_uneven_data(self.data, mesh)
        with claimed(config, mesh, fresh=self.fresh):  # `fresh` deletes: not before all is known to be right
            return self._fit()

    def _fit(self) -> dict[str, Any]:
        config, mesh = self.config, self.mesh
        self.phase_steps = [self._steps_of(phase) for phase in config.phases]
        self.scaler = LossScaler() if needs_scaler(config) else None
        self.checkpoints = Checkpoints(
            config.run_folder / "checkpoints",
            mesh,
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
        )
        saved = self._begin()
        keep_config(config, mesh)
        self.logbook = Logbook(
            config, mesh, total_steps=sum(self.phase_steps), step=self.step, resumed=saved is not None
        )
        self.interrupts = Interrupts(mesh)
        self._started = time.perf_counter()
        finished = False
        try:
            if slow := emulated(config, mesh.device):
                self.logbook.say(f"note: {slow}")
            if saved is not None:
                self.logbook.final_loss = saved.state["final_loss"]
                self.logbook.say(f"resumed from step {self.step} ({saved.folder})")
            with session(config, mesh, sum(self.phase_steps), lambda: self.step):
                with tiny_as_zero():
                    self._phases(self.data.train.stream())
                self._say_wait()
                summary = self._deliver()
            finished = True
            return summary
        finally:
            self._close(finished)

    def _phases(self, stream: Iterator[Batch]) -> None:
        while True:
            self._train_phase(stream)
            if self.phase_index + 1 == len(self.config.phases):
                return
            self.phase_index += 1
            self.assembly = self._then()

    def _train_phase(self, stream: Iterator[Batch]) -> None:
        run = self.assembly.chain.run
        steps = Steps(self.config, self.assembly, self.mesh, self.scaler)
        if run.step < run.steps:
            self._beat(self.step, "teacher", _SLOW_WORK)
            run.teacher.load()
        self.logbook.begin_phase(self.assembly.phase.name, self.step, self.data.train.wait_seconds)
        while run.step < run.steps:
            self._beat(self.step, "data")
            batch = next(stream)
            steps.late.asked = self.logbook.due(self.step + 1, last=False) and self.mesh.data_ranks > 1
            steps.train_step(batch, self.step + 1, self._beat)
            self.step += 1
            self.samples += batch.global_rows
            self._after_step(steps)
        if len(self.results) <= self.phase_index:  # else a checkpoint has brought the end of this phase along
            self._end_of_phase()

    def _after_step(self, steps: Steps) -> None:
        run = steps.chain.run
        last = run.step == run.steps
        if run.step == min(_EXPECT_EFFECT_AFTER, run.steps) or self.logbook.due(self.step, last=last):
            self.checks = steps.chain.demand()
        self.logbook.after_step(
            self.step,
            steps,
            last=last,
            samples=self.samples,
            wait_seconds=self.data.train.wait_seconds,
            checks=self.checks,
            binds=lambda: self.data.train.report().binds,
        )
        if last:
            return
        if _due(self.config.evaluate.every, self.step):
            self._evaluate()
        if _due(self.config.checkpoint.every, self.step):
            self._save()
        if self.interrupts.agreed(self.step):
            self._stop()

    def _end_of_phase(self) -> None:
        metrics = self._evaluate()
        self.results = [
            *self.results,
            {
                "phase": self.assembly.phase.name,
                "step": self.step,
                "metrics": metrics,
                "techniques": technique_lines(self.checks),
            },
        ]
        self.logbook.event("phase", self.step, **metrics)
        self._save()
        if self.interrupts.agreed(self.step) and self.phase_index + 1 < len(self.config.phases):
            self._stop()

    def _stop(self) -> None:
        self._save()
        self.checkpoints.wait()
        raise Preempted(
            f"asked to stop: step {self.step} is saved in {self.checkpoints.folder}; "
            "the same command goes on from there"
        )

    def _deliver(self) -> dict[str, Any]:
        self._beat(self.step, "deliver", _SLOW_WORK)
        self.checks = self.assembly.chain.demand()
        seconds = self._seconds()
        plan, whole = finalize(self.assembly, self.config, self.mesh, self.data.facts, with_moments=False)
        self._note_removals(plan)
        self.checkpoints.wait()
        self.logbook.progress.close()
        return deliver(self, plan, whole, seconds)

    # ── beginning, resuming

    def _begin(self) -> Saved | None:
        saved, notes = self.checkpoints.newest()
        for note in notes if self.mesh.rank == 0 else []:
            print(note, flush=True)
        if saved is None:
            if notes:
                raise CheckpointError(
                    f"no undamaged checkpoint in {self.checkpoints.folder}; start the run over with --fresh"
                )
            self.assembly = self._assemble(0, [])
            return None
        refuse_another_run(self.config, saved, self._spec())
        state = saved.state
        self.step, self.phase_index = saved.step, state["phase"]
        self.assembly = self._assemble(self.phase_index, state["plan"])
        self.checkpoints.restore(saved, self.assembly)
        self.data.train.load_state_dict(state["data"])
        self.results, self.samples, self._seconds_before = (
            state["results"],
            state["samples"],
            state["seconds"],
        )
        self._best = Best(**state["best"]) if state["best"] else None
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        return saved

    def _spec(self) -> dict[str, Any]:
        """The model as first built, fully resolved."""
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
        self._beat(self.step, "next phase", _SLOW_WORK)
        phase, steps = self.config.phases[self.phase_index], self.phase_steps[self.phase_index]
        self.checks = {}
        then = next_phase(self.assembly, self.config, phase, self.mesh, self.data.facts, steps=steps)
        self._note_removals(then.plan)
        return then

    def _note_removals(self, plan: list[dict[str, Any]]) -> None:
        """What the end of the phase took out of the model, beside what was asked for, in its result and on curves."""
        result = self.results[-1]
        lines = [*result["techniques"]]
        for place, record in removals(plan, result["phase"]):
            lines[place] = with_removal(lines[place], record)
            sizes = {
                f"{w}_{when}": n
                for w, ns in record["removed"].items()
                for when, n in zip(("before", "after"), ns, strict=True)
            }
            self.logbook.event("removal", self.step, **sizes)
            before, after = record["removed"]["parameters"]
            self.logbook.say(
                f"step {self.step}  {result['phase']}  {before:,} parameters, {after:,} of them left"
            )
        self.results = [*self.results[:-1], {**result, "techniques": lines}]

    def _steps_of(self, phase: PhaseConfig) -> int:
        return phase.steps if phase.steps is not None else (phase.epochs or 0) * len(self.data.train)

    # ── between steps

    def _evaluate(self) -> dict[str, float]:
        self._beat(self.step, "evaluate", _SLOW_WORK)
        began = time.perf_counter()
        beat = partial(self._beat, self.step, "evaluate")
        metrics = evaluate(self.assembly, self.data, self.mesh, self.config.evaluate.metrics, beat)
        self.checks = self.assembly.chain.demand()
        self.logbook.evaluation(self.step, metrics, self.checks)
        if metrics and self.config.checkpoint.keep_best:
            best = better(
                self._best, metrics, self.config.evaluate.best, phase=self.phase_index, step=self.step
            )
            self._best = best or self._best
            if best is not None and self.assembly.chain.run.step < self.assembly.chain.run.steps:
                self._save()
        self.logbook.leave_out(time.perf_counter() - began)
        return metrics

    def _save(self) -> None:
        ended = len(self.results)
        if self._saved == (self.step, ended):
            return  # nothing has moved: writing it again would only put the one that is there at risk
        self._saved = (self.step, ended)
        self._beat(self.step, "checkpoint", _SLOW_WORK)
        began = time.perf_counter()
        self.checks = self.assembly.chain.demand()
        state = {
            "phase": self.phase_index,
            "phase_name": self.assembly.phase.name,
            "begun": bound_to_phase(self.config, self.phase_index),
            "final_loss": self.logbook.final_loss,
            "model": self._spec(),
            "plan": self.assembly.plan,
            "data": self.data.train.state_dict(),
            "results": self.results,
            "best": self._best.as_json() if self._best else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "seconds": self._seconds(),
            "samples": self.samples,
            "mesh": self.mesh.degrees,
        }
        spared = self._best.step if self._best else None
        self.checkpoints.save(self.step, self.assembly, state, best=spared)
        self.logbook.event("checkpoint", self.step)
        self.logbook.leave_out(time.perf_counter() - began)

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def wait_fraction(self) -> float:
        """Share of this session's time that went into waiting for data."""
        return self.data.train.wait_seconds / max(time.perf_counter() - self._started, 1e-9)

    def _say_wait(self) -> None:
        report = self.data.train.report()
        if report.binds != "step":
            self.logbook.say(f"data: {report}")

    def _close(self, finished: bool) -> None:
        self.interrupts.close()
        self.logbook.close()
        self.data.close()
        if self.config.parallel.engine != "native":  # libraries keep what outlives the objects here
            self.assembly.engine.close()
        try:
            self.checkpoints.close()
        except CheckpointError:
            if finished:
                raise  # else it is most likely the consequence of what ends the run, and must not hide it


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _nobody(step: int, where: str, allow: float = 0.0) -> None:
    """Nobody looks out for this run."""
