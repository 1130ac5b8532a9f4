"""What the techniques of distillation share: whose outputs they want, and the proof that they get them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import ConfigError
from ..run import Run
from ..technique import Check, Technique
from ._teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Distillation(Technique):
    """Base of the techniques that learn from a teacher."""

    teacher: str | dict[str, Any] | None = None
    """An earlier phase ``{phase: NAME}``, a Forgepress artifact or run ``{artifact: PATH}``, or any model as under
    ``model`` (its weights come from the run's seed or its own key ``seed``, unless it is pretrained). Empty only in
    a loop of your own, where the `Run` is given the teacher."""
    cache: bool = False
    """Keep what the teacher says of each row in the run's folder. From the second pass over the data on it is read
    from there; the teacher runs no more and its memory is free, if all techniques that ask it say so."""

    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """raises: ValueError for a setting that would do nothing."""
        if self.match != "weights":
            raise ValueError(
                f"match={self.match!r}: distillation looks at outputs, not at parameters; leave it out"
            )

    def learned(self) -> list[str]:
        """Student modules that get parameters of their own to come near to the teacher's."""
        return []

    def add_columns(self, run: Run, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Let the teacher see the step's rows."""
        return self._teacher(run).add(columns, run.step)

    def checks(self, run: Run) -> list[Check]:
        """Terms that went into the last step's loss, against those that were asked for."""
        names = self._terms(run)
        if self._teacher(run).step is not None:  # else no step was taken since the run was resumed
            device = run.all_weights[0].local.device if run.all_weights else None
            there = torch.tensor([float(name in run.attached) for name in names], device=device)
            run.memory["terms"] = float(run.reduce(there, "max").sum())
        achieved = run.memory.get("terms", float(len(names)))
        return [Check(quantity="distillation terms", requested=float(len(names)), achieved=achieved)]

    def _terms(self, run: Run) -> Sequence[str]:
        """Under which names the terms of the loss are logged."""
        return [run.scope]

    def _teacher(self, run: Run) -> Teacher:
        if run.teacher is None:
            raise ConfigError("distillation: the run has no teacher; give Run(…, teacher=Teacher(module))")
        return run.teacher(self.teacher)

    def _ask(
        self, run: Run, pairs: Sequence[tuple[str, str]], keep: Callable[[Tensor], Tensor], mark: str
    ) -> None:
        """Want the output of the teacher's module where the student's is, for (student, teacher) modules."""
        for student, teacher in pairs:
            column = f"{run.scope}/{student}"
            self._teacher(run).want(column, module=teacher, at=student, keep=keep, mark=mark)


def note_term(run: Run, name: str, term: Tensor) -> None:
    """Add the value of a term of the loss, of this micro-batch, to what the trackers get of the step."""
    known = run.attached.get(name)
    run.attached[name] = term.detach() if known is None else known + term.detach()
