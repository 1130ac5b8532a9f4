"""The lowest and highest value of tensors, without waiting for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SHORTEST_ROW = 64  # values: ends of shorter rows would take as long to look through as the tensor

Ends = tuple[float, float] | Tensor
"""(-lowest, highest): two numbers on the CPU, where they are at hand; elsewhere float32 [2]."""


@dataclass(frozen=True, kw_only=True)
class RowEnds:
    """The lowest and highest value of each row of a contiguous tensor [rows × width], both [rows] in its dtype."""

    low: Tensor
    high: Tensor
    width: int

    def beyond(self, lowest: float, highest: float) -> Tensor:
        """Numbers of the rows with a value that is not strictly between the two: int64."""
        return (self.low > lowest).logical_and_(self.high < highest).logical_not_().nonzero().flatten()


def ends_of(x: Tensor) -> tuple[Ends, RowEnds | None]:
    """Of one tensor, not empty, and of its rows on the CPU where it has such. cost: two passes."""
    if x.device.type != "cpu":
        return torch.stack((x.amin().neg(), x.amax())).float(), None
    width = width_of_rows(x)
    if width is None:
        return (-float(x.amin()), float(x.amax())), None
    by_rows = x.view(-1, width)
    return ends_of_rows(RowEnds(low=by_rows.amin(1), high=by_rows.amax(1), width=width))


def ends_of_rows(rows: RowEnds) -> tuple[Ends, RowEnds]:
    """Of a tensor on the CPU whose rows are known."""
    return (-float(rows.low.amin()), float(rows.high.amax())), rows


def width_of_rows(x: Tensor) -> int | None:
    """Values in as few trailing dims as make a row; None where rows would be strided or too few."""
    if not x.is_contiguous():
        return None
    widths = (math.prod(x.shape[dim:]) for dim in range(x.ndim - 1, 0, -1))
    return next((width for width in widths if width >= SHORTEST_ROW), None)


def of_both(first: Ends | None, second: Ends) -> Ends:
    """Of two tensors together; NaN stays NaN."""
    if first is None:
        return second
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return torch.maximum(as_tensor(first), as_tensor(second))
    return _larger(first[0], second[0]), _larger(first[1], second[1])


def as_tensor(ends: Ends) -> Tensor:
    """float32 [2]."""
    return ends if isinstance(ends, Tensor) else torch.tensor(ends, dtype=torch.float32)


def _larger(a: float, b: float) -> float:
    return a if a >= b or a != a else b
