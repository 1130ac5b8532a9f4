"""The mathematics of a grid: step sizes from ranges, values to levels and back. Plain functions on tensors.

A symmetric grid has signed levels around a zero point of 0, an affine one unsigned levels ``0 … 2^bits - 1`` and a
zero point among them: zero is always a level, so that pruned weights and padding stay exactly zero.

Step sizes (scales) keep 16 significant bits. A level has at most 8, so ``level × scale`` is exact in float32: values
on a grid can be compared with ``==``, an exported integer stands for exactly the value that was trained with, and all
ranks of any mesh agree to the last bit. The price is a scale that is wrong by at most one part in 65,536.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import fused

_DROPPED = 8  # of the 24 significant bits of a float32


def levels(bits: int, symmetric: bool) -> tuple[int, int]:
    """Lowest and highest level. Symmetric: -127…127, -7…7 and, as three levels would waste a quarter, -2…1."""
    if not symmetric:
        return 0, 2**bits - 1
    top = 2 ** (bits - 1) - 1
    return (-2, 1) if bits == 2 else (-top, top)


def exact(scale: Tensor) -> Tensor:
    """``scale`` (float, not negative) rounded to 16 significant bits; 1 where it is 0 (nothing but zeros there)."""
    scale = scale.float()
    scale = torch.where(scale > torch.finfo(torch.float32).tiny * 2**16, scale, torch.ones_like(scale))
    whole = scale.contiguous().view(torch.int32)
    half = 1 << (_DROPPED - 1)
    return ((whole + half) & ~((1 << _DROPPED) - 1)).view(torch.float32)


def symmetric_scale(largest: Tensor, bits: int) -> Tensor:
    """Step size of the symmetric grid for magnitudes up to ``largest`` (any shape)."""
    low, high = levels(bits, True)
    return exact(largest / ((high - low) / 2))


def affine_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, zero point) of the affine grid for values from ``low`` to ``high``, widened to hold zero.

    low, high: float, one shape.   returns: float32 and int32 of that shape.
    """
    top = 2**bits - 1
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    scale = exact((high - low) / top)
    return scale, (-low / scale).round().clamp(0, top).int()


def grid_of(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(scale, zero point) for values from ``low`` to ``high``: float32 and int32 of their shape."""
    if symmetric:
        scale = symmetric_scale(torch.maximum(low.abs(), high.abs()), bits)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    return affine_grid(low, high, bits)


def to_levels(x: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Tensor:
    """The nearest levels of ``x`` as float32 whole numbers, shaped like it; halves go to the even level.

    scale, zero_point: shaped to go with ``x`` (see `spread`).   zero_point: None for a symmetric grid.
    """
    lowest, highest = levels(bits, zero_point is None)
    q = (x.float() / scale).round_()
    if zero_point is not None:
        q.add_(zero_point)
    return q.clamp_(lowest, highest)


def from_levels(q: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """The values that levels ``q`` stand for: ``(q - zero_point) × scale``, exact in float32."""
    return q * scale if zero_point is None else (q - zero_point) * scale


def snap_(x: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Tensor:
    """Move every value of ``x`` (float32) to the nearest value of its grid, in place.

    cost: one pass over ``x``; four without a C compiler, on other devices, and on affine grids.
    """
    lowest, highest = levels(bits, zero_point is None)
    if zero_point is None:
        return fused.snap_(x, scale, lowest, highest)
    return x.div_(scale).round_().clamp_(lowest - zero_point, highest - zero_point).mul_(scale)


def off_grid(x: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Tensor:
    """How many values of ``x`` are not exactly on the grid: 0-dim int64."""
    return (snap_(x.clone(), scale, zero_point, bits) != x).sum()


def groups_in(features: int, group: int) -> int:
    """Number of groups of ``group`` input features; the last may be shorter. group 0: one group of all."""
    return -(-features // group) if group else 1


def spread(values: Tensor, features: Tensor, group: int) -> Tensor:
    """One value for each input feature instead of for each group, to go with a weight.

    values: [out or 1, groups, 1, …].   features: int64 [n], global numbers of the input features held (dim 1).
    group: input features a group; 0 = one group, and ``values`` goes with the weight as it is.
    returns: [out or 1, n, 1, …].
    """
    return values if group == 0 else values.index_select(1, features // group)


def weight_range(weight: Tensor, granularity: str | int) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each tensor, output channel or group of a whole ``weight`` [out, in, …].

    granularity: ``tensor``, ``channel`` (dim 0), or the number of input features (dim 1) in a group.
    returns: two tensors [1, 1, …], [out, 1, …] or [out, groups, 1, …].
    """
    if granularity == "tensor":
        return weight.amin().view([1] * weight.ndim), weight.amax().view([1] * weight.ndim)
    rest = tuple(range(1, weight.ndim))
    if granularity == "channel":
        return weight.amin(rest, keepdim=True), weight.amax(rest, keepdim=True)
    parts = weight.split(int(granularity), dim=1)
    low = torch.cat([part.amin(rest, keepdim=True) for part in parts], dim=1)
    return low, torch.cat([part.amax(rest, keepdim=True) for part in parts], dim=1)
