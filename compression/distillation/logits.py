"""Distillation of logits: the student learns the teacher's probabilities beside the true answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from ..outputs import logits_of
from ..run import Run
from ._base import Distillation, note_term
from ._layers import Shapes
from ._losses import divergence, kept, packed, unpacked


@dataclass(frozen=True, kw_only=True)
class LogitDistillation(Distillation):
    """Mix the task's loss with the divergence from the teacher: ``(1 - alpha) · loss + alpha · T² · KL``.

    The mean goes over the items of the whole global batch that the task's own loss counts: rows, or tokens that are
    neither padding nor ignored. So ranks and micro-batches of unequal size weigh every item alike. What ``alpha``
    mixes with is all that stands before it in the list: the task's loss and terms of the outputs that earlier
    techniques added. Losses at inner modules (distillation.features, distillation.attention) keep their own weight
    whatever ``alpha`` is.

    source: Hinton et al. 2015, arXiv:1503.02531; reverse: Gu et al. 2023, arXiv:2306.08543.
    cost: the teacher's forward pass and its weights (sharded as the student's are); two softmaxes over the classes.
        With ``cache``, from the second pass over the data on, one read of ``top_k`` values an item instead.
    finalize: delivers the student as it is; nothing of the teacher is left in it.
    """

    temperature: float = 1.0
    """Divides the logits of both; above 1 shows more of what the teacher holds for less likely."""
    alpha: float = 0.5
    """Share of the teacher, 0 to 1; with 1 the true answers are not looked at."""
    direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(teacher ‖ student), covers all that the teacher does. reverse: KL(student ‖ teacher), seeks the
    likeliest."""
    top_k: int | None = None
    """Keep only the teacher's so many likeliest classes and the probability of all others together; empty: all."""

    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "teacher": {"name": "lenet_300_100", "hidden": [24, 16], "seed": 8},
            "temperature": 2.0,
            "top_k": 4,
            "cache": True,
        },
    )

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        super().__post_init__()
        if not self.temperature > 0.0:
            raise ValueError(f"temperature={self.temperature}: want more than 0")
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(
                f"alpha={self.alpha}: want more than 0 and at most 1; 0 would be no distillation"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: want 1 or more, or leave it out to keep all classes")

    def modules(self) -> dict[str, str]:
        """No inner modules: the outputs of both are compared."""
        return {}

    def fitted(self, student: Shapes, teacher: Shapes) -> LogitDistillation:
        """This technique, if both models say something of the same items and classes.

        student, teacher: under ``""`` the shape of the model's logits, the rows first.
        raises: ConfigError where they do not, or where there are not more classes than ``top_k``.
        """
        ours, theirs = student[""], teacher[""]
        if ours != theirs:
            raise ConfigError(
                f"distillation.logits: the student gives logits {list(ours)}, the teacher {list(theirs)}; want the "
                "same places and the same classes or vocabulary in both"
            )
        if self.top_k is not None and self.top_k >= theirs[-1]:
            raise ConfigError(self._too_many(theirs[-1]))
        return self

    def set_up(self, run: Run) -> None:
        """Ask for the logits where the student's are."""
        mark = f"logits top {self.top_k} at {self.temperature}" if self.top_k else "logits"
        self._teacher(run).want(run.scope, keep=self._keep, mark=mark)

    def add_loss(self, run: Run, outputs: Any, batch: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """The mixed loss of this micro-batch."""
        column, logits = batch[run.scope], logits_of(outputs)
        each = self.divergence(column, logits)
        real = run.items_mask(batch, run.now.valid, logits)
        total = torch.where(real, each, 0.0).sum() / run.items
        note_term(run, run.scope, total)
        return (1.0 - self.alpha) * loss + self.alpha * self.temperature**2 * total

    def divergence(self, column: Tensor, logits: Tensor) -> Tensor:
        """Of the teacher's column [rows, …] and the student's logits [rows, …, C], for each item: [rows, …].

        raises: ConfigError where the two count other items or classes.
        """
        student = logits / self.temperature
        if self.top_k is None:
            teacher = column / self.temperature
        else:
            teacher, indices = unpacked(column)
            if student.shape[:-1] == indices.shape[:-1] and indices.shape[-1] < student.shape[-1]:
                student = kept(student, indices)
        if teacher.shape != student.shape:
            raise ConfigError(
                f"distillation.logits: the teacher gives {list(teacher.shape)}, the student {list(student.shape)}; "
                "both must say something of the same items and classes, and top_k must be less than the classes"
            )
        return divergence(teacher, student, reverse=self.direction == "reverse")

    def _keep(self, logits: Tensor) -> Tensor:
        if self.top_k is None:
            return logits.float()
        if self.top_k >= logits.shape[-1]:
            raise ConfigError(self._too_many(logits.shape[-1]))
        return packed(logits.float() / self.temperature, self.top_k)

    def _too_many(self, classes: int) -> str:
        return (
            f"distillation.logits: top_k={self.top_k}, but the teacher has {classes} classes; want fewer, or leave "
            "top_k out to keep all"
        )
