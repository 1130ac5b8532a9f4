"""The k-th smallest magnitude over all shards of a model: exact, and the same bits on any mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

# A non-negative float32 orders like its bit pattern read as an integer (31 bits). The upper 16 bits choose a
# bucket in the first pass, the lower 15 bits finish inside it in the second.
_LOW_BITS = 15
_BUCKETS = 1 << (31 - _LOW_BITS)
_CHUNK = 1 << 16  # values at a time: the temporaries stay in the cache and out of the memory bill

Reduce = Callable[[Tensor], Tensor]
"""Adds an int64 tensor over all ranks that hold other values; identity on one process."""


def exact_quantile(values: Sequence[Tensor], k: int, reduce: Reduce | None = None) -> Tensor:
    """The ``k``-th smallest ``|value|`` over the values of all ranks together.

    values: local tensors of any shapes, float32, float16 or bfloat16 (both exact in float32); may be empty.
    k:      1-based, counted over all ranks.
    reduce: sums an int64 tensor over the ranks, in place or not; None on one process.
    returns: 0-dim float32 on the values' device; the same bits for any cut of the values over ranks.
    raises: ValueError where k is not in 1..count, TypeError for float64 (its order is finer than float32).
    cost:   two passes over the local values, two all-reduces (512 and 256 KiB), temporaries of 65,536 values.
    """
    reduce = reduce or (lambda counts: counts)
    for value in values:
        if value.dtype == torch.float64:
            raise TypeError("exact_quantile: float64 values given; want float32, float16 or bfloat16")
    device = values[0].device if values else torch.device("cpu")
    coarse = torch.zeros(_BUCKETS, dtype=torch.int64, device=device)
    for bits in _magnitude_bits(values):
        coarse += torch.bincount(bits >> _LOW_BITS, minlength=_BUCKETS)
    bucket, below = _locate(reduce(coarse), k)

    fine = torch.zeros(1 << _LOW_BITS, dtype=torch.int64, device=device)
    for bits in _magnitude_bits(values):
        inside = bits[(bits >> _LOW_BITS) == bucket]
        fine += torch.bincount(inside & ((1 << _LOW_BITS) - 1), minlength=1 << _LOW_BITS)
    low, _ = _locate(reduce(fine), k - below)
    pattern = torch.tensor((bucket << _LOW_BITS) | low, dtype=torch.int32, device=device)
    return pattern.view(torch.float32)


def _magnitude_bits(values: Sequence[Tensor]) -> Iterable[Tensor]:
    for value in values:
        for chunk in value.detach().reshape(-1).split(_CHUNK):
            if chunk.numel():
                yield chunk.float().view(torch.int32) & 0x7FFFFFFF


def _locate(counts: Tensor, k: int) -> tuple[int, int]:
    """The bucket that holds the k-th value, and how many values lie in the buckets before it."""
    cumulative = counts.cumsum(0)
    total = int(cumulative[-1])
    if not 1 <= k <= total:
        raise ValueError(f"exact_quantile: k={k} given; want 1 to {total}, the number of values")
    bucket = int(torch.searchsorted(cumulative, k))
    return bucket, int(cumulative[bucket] - counts[bucket])
