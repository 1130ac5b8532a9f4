"""What activations look like over a run: ranges and histograms that add up over micro-batches, steps and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..run import Run
from .activations import ActivationQuantizer
from .grid import grid_of
from .histogram import least_error_range, percentile_range

_AVERAGED = 100  # steps after which the moving average forgets

Observer = Literal["min_max", "moving_average", "percentile", "mse"]


def observe(quantizers: Sequence[ActivationQuantizer], run: Run, observer: Observer) -> None:
    """Take what the quantizers of this pipeline stage have seen in a step into their ranges and grids.

    All ranks of the stage call it with the same quantizers in the same order; their buffers stay equal.
    Ranges do not depend on how the rows were dealt out. Of the moving average, the first 100 steps are a plain mean.
    cost: one all-reduce of two numbers for each quantizer (and of one histogram for each, where one is kept).
    """
    if not quantizers:
        return
    ends = torch.stack([_taken(quantizer) for quantizer in quantizers])  # [n, 2] (-lowest, highest)
    ends = run.over_rows(ends, "max")
    if quantizers[0].counts is not None:
        seen = torch.stack([quantizer.tally() for quantizer in quantizers])
        for quantizer, counts in zip(quantizers, run.over_rows(seen, "sum"), strict=True):
            assert quantizer.counts is not None
            quantizer.counts += counts if quantizer.in_parts else counts // run.copies
    _settle(quantizers, ends, observer)


def _taken(quantizer: ActivationQuantizer) -> Tensor:
    seen = quantizer.take_seen()
    return torch.full((2,), float("-inf"), device=quantizer.low.device) if seen is None else seen


def _settle(quantizers: Sequence[ActivationQuantizer], ends: Tensor, observer: Observer) -> None:
    """New ranges and grids for all at once: a few small tensors, whatever the number of quantizers."""
    old = torch.stack([torch.stack((q.low.neg(), q.high)) for q in quantizers])
    steps = torch.stack([q.steps for q in quantizers]).unsqueeze(1)
    new = ends.clamp(min=0)  # the range holds zero
    if observer == "moving_average":
        new = old + (new - old) / (steps + 1).clamp(max=_AVERAGED)
    else:
        new = torch.maximum(old, new)
    called = torch.isfinite(ends)
    new = torch.where(called, new, old)
    scales, zero_points = grid_of(-new[:, 0], new[:, 1], quantizers[0].bits, quantizers[0].symmetric)
    steps = (steps + called[:, :1]).squeeze(1)
    for name, values in (
        ("low", -new[:, 0]),
        ("high", new[:, 1]),
        ("scale", scales),
        ("zero_point", zero_points),
        ("steps", steps),
    ):
        torch._foreach_copy_([getattr(q, name) for q in quantizers], list(values.unbind()))
    if not all(q.ready for q in quantizers):  # later on, nobody waits for the device here
        for quantizer, count in zip(quantizers, steps.tolist(), strict=True):
            quantizer.ready = count > 0


def conclude(quantizer: ActivationQuantizer, observer: Observer, percentile: float) -> None:
    """The last word on a range that a histogram decides (`percentile`, `mse`)."""
    assert quantizer.counts is not None
    low, high = quantizer.low, quantizer.high
    if observer == "percentile":
        low, high = percentile_range(quantizer.counts, low, high, percentile)
    else:
        low, high = least_error_range(quantizer.counts, low, high, quantizer.bits, quantizer.symmetric)
    quantizer.set_range(low, high)
