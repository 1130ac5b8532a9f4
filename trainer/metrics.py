"""Metrics as sums: every rank adds up what its rows give, one reduction makes them global, one division ends it."""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .imports import load_function
from .tasks import Task

Columns = Mapping[str, Tensor]
Part = Callable[[Task, Any, Columns, Tensor | None], tuple[Tensor, Tensor]]
"""(task, outputs, columns, valid) → sum over the items, number of items; both 0-d, on the outputs' device."""


def loss(task: Task, outputs: Any, columns: Columns, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The task's loss, summed over the items, and how many they are."""
    return task.loss_sum(outputs, columns, valid), task.count(columns, valid)


def accuracy(task: Task, outputs: Any, columns: Columns, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """How many items have their target as the largest logit, and how many they are."""
    logits, targets, items = task.predictions(outputs, columns, valid)
    return (logits.argmax(-1).eq(targets) & items).sum(), items.sum()


def own(path: str) -> Part:
    """The user's own metric "package.module:function": (outputs, columns) → values of each item, [B] or [B,
    …].

    Rows that are padding are left out; the result is the mean over what remains.
    raises: ConfigError where the function cannot be found, or gives something else (when it is called).
    """
    function = load_function(path, "evaluate.metrics")

    def part(task: Task, outputs: Any, columns: Columns, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = next(iter(columns.values())).shape[0]
        values = function(outputs, columns)
        if not isinstance(values, Tensor) or values.ndim == 0 or values.shape[0] != rows:
            given = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ConfigError(
                f"evaluate.metrics: {path} gave {given}; want a tensor of values for {rows} rows"
            )
        values = values.detach().double()
        if valid is None:
            return values.sum(), torch.tensor(values.numel(), device=values.device)
        real = valid.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
        return torch.where(real, values, 0.0).sum(), real.sum()  # where, not *: padding may give NaN

    return part


BUILT_IN: dict[str, Part] = {"accuracy": accuracy, "loss": loss, "perplexity": loss}


def metric(name: str) -> Part:
    """The built-in metric of this name, or the user's own one for "package.module:function".

    raises: ConfigError for an unknown name, with the nearest.
    """
    if ":" in name:
        return own(name)
    if name not in BUILT_IN:
        close = get_close_matches(name, BUILT_IN, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"evaluate.metrics: {name!r} is not known{hint}; want one of {', '.join(BUILT_IN)} "
            "or 'package.module:function'"
        )
    return BUILT_IN[name]


class Meter:
    """Adds up metrics over batches. Nothing is read back from the device until `result`.

    names: as the config says them; none = those of the task. The loss is always among them.
    """

    def __init__(self, task: Task, names: Sequence[str] = (), *, device: torch.device | str = "cpu") -> None:
        self.names = tuple(dict.fromkeys((*(names or task.metrics), "loss")))
        self._parts = {name: metric(name) for name in self.names}
        self._task = task
        self._sums = torch.zeros(len(self.names), 2, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, outputs: Any, columns: Columns, valid: Tensor | None = None) -> None:
        """Adds one batch of this rank. A rank without the outputs (an earlier pipeline stage) does not call it."""
        for row, part in enumerate(self._parts.values()):
            total, count = part(self._task, outputs, columns, valid)
            self._sums[row, 0] += total.to(self._sums)
            self._sums[row, 1] += count.to(self._sums)

    def sums(self) -> Tensor:
        """[metrics, 2] in float64: sum and count of each metric. To be added over all ranks that updated."""
        return self._sums.clone()

    def result(self, sums: Tensor | None = None) -> dict[str, float]:
        """Metric → value, from `sums` that were added over the ranks (None: this rank's own).

        Names are those of the config. raises: DataError where there was no item at all.
        """
        values: dict[str, float] = {}
        for name, (total, count) in zip(
            self.names, (self._sums if sums is None else sums).tolist(), strict=True
        ):
            if count == 0:
                raise DataError(f"evaluate: metric {name} saw no item; is the evaluation split empty?")
            mean = total / count
            values[name] = _exponential(mean) if name == "perplexity" else mean
        return values


def _exponential(mean: float) -> float:
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf
