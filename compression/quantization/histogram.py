"""Histograms of activations that add up over micro-batches, steps and ranks, and the ranges that they tell."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import from_levels, grid_of, to_levels

_LOWEST, _OCTAVES, _FINE = -32, 48, 6  # magnitudes from 2^-32 to 2^16, each octave in 2^6 bins
_SIDE = _OCTAVES << _FINE
BINS = 2 * _SIDE
"""Bins of a histogram: negative values first, largest magnitude outermost; none is wider than 1/64 of its value."""


def histogram(x: Tensor) -> Tensor:
    """Counts of the values of ``x`` (any shape): int64 [BINS]. Bins lie where they lie whatever was seen before.

    They are the leading bits of the number itself, so that histograms of any micro-batches and ranks just add.
    """
    bits = x.float().abs().flatten().view(torch.int32) >> (23 - _FINE)
    place = (bits - ((127 + _LOWEST) << _FINE)).clamp_(0, _SIDE - 1)
    place = torch.where(x.flatten() < 0, _SIDE - 1 - place, place + _SIDE)
    return torch.bincount(place, minlength=BINS)


def centers(device: torch.device | str = "cpu", within: float = 0.5) -> Tensor:
    """The value in the middle of each bin: float64 [BINS]; 0 for the two around zero.

    within: where in the bin, 0 = its end at zero, 1 = its outer end.
    """
    place = torch.arange(_SIDE, dtype=torch.float64, device=device)
    octave, fine = (place / 2**_FINE).floor(), place % 2**_FINE
    value = torch.ldexp(1 + (fine + within) / 2**_FINE, octave + _LOWEST)
    value[0] = 0
    return torch.cat((value.flip(0).neg(), value))


def percentile_range(counts: Tensor, low: Tensor, high: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """The range that holds the middle ``percentile`` percent of what a histogram has counted.

    counts: [BINS].   low, high: 0-dim, the true ends, which bound it.   returns: two 0-dim float32.
    """
    below = counts.double().cumsum(0)
    tail = (1 - percentile / 100) / 2 * below[-1]
    value = centers(counts.device, within=1.0)
    # The first bin with more than the tail below it, and the first that leaves no more than the tail above it.
    first = torch.searchsorted(below, tail, right=True).clamp(max=BINS - 1)
    last = torch.searchsorted(below, below[-1] - tail).clamp(max=BINS - 1)
    return torch.maximum(value[first].float(), low), torch.minimum(value[last].float(), high)


def least_error_range(
    counts: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """The share of the range, in steps of 1 %, whose grid is nearest to what was seen in the mean square.

    counts: [BINS].   low, high: 0-dim, the whole range.   returns: two 0-dim float32.
    """
    shares = torch.arange(20, 101, device=counts.device).div(100).unsqueeze(1)  # [81, 1]
    scale, zero_point = grid_of(low * shares, high * shares, bits, symmetric)
    value = centers(counts.device).float().clamp(low, high)
    zeros = None if symmetric else zero_point
    kept = from_levels(to_levels(value, scale, zeros, bits), scale, zeros)  # [81, BINS]
    error = ((kept - value).double().square() * counts).sum(1)
    best = shares[error.argmin(), 0]
    return low * best, high * best
