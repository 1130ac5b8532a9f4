"""The lowest and highest value of tensors, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

Ends = tuple[float, float] | Tensor
"""(-lowest, highest): two numbers on the CPU, where they are at hand; elsewhere float32 [2]."""


def ends_of(x: Tensor) -> Ends:
    """Of one tensor, not empty. cost: two passes."""
    low, high = x.amin(), x.amax()
    if x.device.type == "cpu":
        return -float(low), float(high)
    return torch.stack((low.neg(), high)).float()


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
