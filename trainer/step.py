"""One optimizer step: forward and backward, techniques, clipping, update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..dataloading import Batch
from ..errors import DivergenceError
from ..parallel import TOKEN_AXES, Mesh
from .assembly import Assembly
from .config import RunConfig
from .gradients import blame, clip, diverged, global_norm
from .precision import LossScaler
from .randomness import StepSeeds
from .same_everywhere import Late
from .schedules import factor
from .sequences import cut_batch
from .update import update_of

_SKIPS_IN_A_ROW = 50  # after that many steps left out, training is broken and not just unlucky
_COMPILING = 1200.0  # seconds in which a forward and a backward are compiled, of the largest models too


class Steps:
    """Optimizer steps of one phase: forward and backward, techniques, clipping, update."""

    def __init__(self, config: RunConfig, assembly: Assembly, mesh: Mesh, scaler: LossScaler | None) -> None:
        self.assembly = assembly
        self.chain = assembly.chain
        self.settings = config.optimizer_of(assembly.phase)
        self.scaler = scaler
        self.losses = torch.zeros((), device=mesh.device)  # summed since they were last taken
        self.norm: Tensor | None = None
        self.learning_rate = 0.0
        self.skipped = 0
        self.late = Late(mesh)
        self._mesh = mesh
        self._seeds = StepSeeds(config.seed, mesh, numpy_too=not _built_in(config))
        self._moving = assembly.moving
        self._update = self._moving.update if self._moving else update_of(assembly.optimizer)
        self._skipped_in_a_row = 0
        self._compiled: set[int] | None = set() if config.parallel.compile else None  # sizes of batches

    def train_step(self, batch: Batch, global_step: int, where: Any) -> None:
        """One optimizer step on one global batch (this rank's rows of it).

        raises: DivergenceError naming step and parameter where the gradient is not finite.
        """
        batch = cut_batch(batch, self.assembly.task, self._mesh)
        self._seeds.begin(global_step)
        self._set_learning_rate()  # of the step that begins: `run.step` counts it only from the next line on
        run = self.chain.run
        run.items, run.rows = self._global_items(batch), float(max(batch.global_rows, 1))
        run.loss_scale = self.scaler.factor if self.scaler else 1.0
        self.chain.before_step(self.learning_rate)

        where(global_step, "forward/backward", self._compiles(batch.global_rows))
        if not self.chain.trains:
            self._look(batch)
            return
        run.teacher.see(batch.rows, batch.epoch)
        columns = self.chain.add_columns(batch.columns)
        loss = self.assembly.engine.forward_backward(
            columns, batch.valid, self.assembly.inputs, self._loss, global_rows=batch.global_rows
        )
        self._unscale()
        self.chain.after_backward()
        finite = self._clip_and_check(loss, global_step)

        where(global_step, "optimizer")
        self.chain.before_update()
        if finite:
            self._update()
        elif self._moving:
            self._moving.update(finite=False)
        self.chain.after_step()
        if self._moving:
            self._moving.settle()
        for weight in self.assembly.weights:
            weight.drop_grad()
        self.losses += loss / self.scaler.factor if self.scaler else loss

    def _compiles(self, rows: int) -> float:
        """Seconds that this step may take beside the usual, because it is the first of its size."""
        new = self._compiled is not None and rows not in self._compiled
        if self._compiled is not None:
            self._compiled.add(rows)
        return _COMPILING if new else 0.0

    def _look(self, batch: Batch) -> None:
        """A step of a phase that does not train: the rows go forward, as in evaluation, and nothing moves."""
        parts, task = self.assembly.engine.parts, self.assembly.task
        for part in parts:
            part.eval()
        try:
            outputs = self.assembly.engine.forward(batch.columns, self.assembly.inputs, batch.valid)
        finally:
            for part in parts:
                part.train()
        if outputs is not None:
            with torch.no_grad():
                self.losses += task.loss_sum(outputs, batch.columns, batch.valid) / self.chain.run.items
        self.chain.run.in_step = False
        self.chain.after_step()

    def _loss(self, outputs: Any, columns: Mapping[str, Tensor], valid: Tensor | None) -> Tensor:
        """Share of these rows in the mean loss over the global batch; sums over micro-batches and ranks to it."""
        self.late.arrive()
        loss = self.assembly.task.loss_sum(outputs, columns, valid) / self.chain.run.items
        loss = self.chain.add_loss(outputs, columns, loss)
        return self.scaler.scale(loss) if self.scaler else loss

    def _global_items(self, batch: Batch) -> float | Tensor:
        """How many items (rows, tokens) the loss is the mean of, over all ranks."""
        task = self.assembly.task
        if task.uniform_items_per_row is not None:
            return float(max(batch.global_rows * task.uniform_items_per_row, 1))
        count = task.count(batch.columns, batch.valid).to(torch.float64)
        return self._mesh.reduce(count, "sum", TOKEN_AXES).clamp_min(1.0).float()

    def _set_learning_rate(self) -> None:
        run = self.chain.run
        self.learning_rate = self.settings.lr * factor(self.settings.schedule, run.step, run.steps)
        for group in self.assembly.optimizer.param_groups:
            group["lr"] = self.learning_rate

    def _unscale(self) -> None:
        if self.scaler:
            for weight in self.assembly.weights:
                weight.take_grad()
            self.scaler.unscale([w.grad for w in self.assembly.weights], self._mesh.device)

    def _clip_and_check(self, loss: Tensor, global_step: int) -> bool:
        """Clip; False where the step must be left out. The norm is the whole model's, so all ranks agree."""
        self.norm = global_norm(self.chain.run)
        finite = math.isfinite(float(self.norm))
        if self.scaler:
            self.scaler.update(found_inf=not finite)
        if finite:
            self._skipped_in_a_row = 0
            if self.settings.clip_norm is not None:
                clip(self.assembly.weights, self.norm, self.settings.clip_norm)
            return True
        self.skipped += 1
        self._skipped_in_a_row += 1
        may_skip = self.settings.nonfinite == "skip" or self.scaler is not None
        if may_skip and self._skipped_in_a_row < _SKIPS_IN_A_ROW:
            return False
        raise self._diverged(loss, global_step)

    def _diverged(self, loss: Tensor, global_step: int) -> DivergenceError:
        culprit = blame(self.chain.run, self.assembly.names, self._mesh)
        total = self._mesh.reduce(loss.detach(), "sum", ("pipeline", *TOKEN_AXES))
        return diverged(global_step, self.assembly.phase.name, float(total), culprit)

    def terms(self) -> dict[str, float]:
        """The inner losses of the last step by their names, over the whole mesh. Collective."""
        held = self.chain.run.attached
        names = sorted(held)
        if self._mesh.pipeline > 1 and self.chain.techniques:  # stages have terms of their own
            everyone: list[Any] = [None] * self._mesh.world
            dist.all_gather_object(everyone, names)
            names = sorted({name for theirs in everyone for name in theirs})
        if not names:
            return {}
        zero = torch.zeros((), device=self._mesh.device)
        values = torch.stack([held.get(name, zero).float() for name in names])
        values = self._mesh.reduce(values, "sum", ("pipeline", *TOKEN_AXES))
        return dict(zip(names, values.tolist(), strict=True))

    def take_loss(self, steps: int) -> float:
        """Mean loss of the last ``steps`` steps over the whole mesh; starts the sum anew. Collective."""
        total = self._mesh.reduce(self.losses, "sum", ("pipeline", *TOKEN_AXES))
        self.losses = torch.zeros_like(self.losses)
        return float(total) / max(steps, 1)


def _built_in(config: RunConfig) -> bool:
    return isinstance(config.model, str) or "name" in config.model
