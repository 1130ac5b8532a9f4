"""What rounds the inputs of a layer: observes their range, then puts them on its grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import fused
from ..placement import is_divided
from .common_input import CommonInput
from .ends import Ends, RowEnds, as_tensor, ends_of, ends_of_rows, of_both, width_of_rows
from .grid import grid_of, levels
from .histogram import BINS, histogram
from .rounding import Clips, dynamic_rounded, rounded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


_Seen = tuple[Ends, RowEnds | None]


class ActivationQuantizer(nn.Module):
    """Rounds what flows into a layer to a grid of ``bits``; the identity until it is ``enabled``.

    Static (``dynamic`` False): one grid for the whole tensor, from the range that an observer has found. Dynamic: each
    row of ``row_dims`` trailing dims (a token, an image) has the grid of its own range, and there is no state.

    low, high:   float32 0-dim buffers, the observed range (0 and 0 before anything was seen; always holds zero).
    scale, zero_point: float32 and int32 0-dim buffers, the grid of that range (zero_point 0 where symmetric).
    steps:       int64 0-dim buffer, optimizer (or calibration) steps observed.
    counts:      int64 buffer, the histogram of what was seen (see `observers`); None where the range is enough, and
                 after finalize.
    symmetric:   signed levels -127…127 around 0, or unsigned ones 0…255 (see `levels`).
    observing:   what flows in is noted for the observer, which takes it once a step.
    rows:        says which rows (dim 0) of the micro-batch in hand are real; None: all.
    ready:       a range is known (dynamic: always).
    learned:     the step size is moved by its gradient while ``learning``: backward gathers what the loss wants of it
                 (``take_pull``), in units of the loss as it was before scaling (``unit``).
    enabled:     the grid is applied. After finalize: observing False, enabled True.
    Buffers are equal on all data and tensor ranks. The gradient passes straight through, and is zero where a
    value was clipped.
    cost: one pass over the input forward, observing or not; without a C compiler four (three where the range is
        seen to clip nothing) and two more while observing. Backward: none where nothing was clipped, a copy of the
        gradient where few rows hold what was, else a pass over gradient and input. Nothing for a second layer that
        takes the same tensor on the same grid.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    zero_point: Tensor
    steps: Tensor
    counts: Tensor | None
    pull_mean: Tensor
    pull_square: Tensor

    def __init__(
        self,
        *,
        bits: int = 8,
        symmetric: bool = False,
        dynamic: bool = False,
        row_dims: int = 1,
        with_histogram: bool = False,
        learned: bool = False,
    ) -> None:
        """with_histogram: keep one of what is seen, for observers that need more than the range.
        learned: the step size will be moved by its gradient, see `step_size`.
        """
        super().__init__()
        self.bits, self.symmetric, self.dynamic, self.row_dims = bits, symmetric, dynamic, row_dims
        self.observing, self.enabled, self.ready = False, False, dynamic
        self.numbers: tuple[float, int] | None = (
            None  # scale and zero_point, for as long as nothing changes them
        )
        self.common: CommonInput | None = None  # what other quantizers may have worked out for the same input
        self._ends: Ends | None = None  # since the observer last asked, on this rank
        self.learned, self.learning = learned, False
        self.in_parts = (
            False  # whether ranks along the tensor axis see parts of the features, or all the same
        )
        self.unit: Callable[[], float | Tensor] = _one
        self._pull: Tensor | None = None
        self.rows: Callable[[], Tensor | None] = _all_rows
        self._tally: Tensor | None = None  # histogram since the observer last asked, on this rank
        self.register_buffer("counts", torch.zeros(BINS, dtype=torch.int64) if with_histogram else None)
        if not dynamic:
            for name in ("low", "high"):
                self.register_buffer(name, torch.zeros(()))
            self.register_buffer("scale", torch.ones(()))
            self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if learned:
            self.register_buffer("pull_mean", torch.zeros(()))
            self.register_buffer("pull_square", torch.zeros(()))

    @property
    def levels(self) -> tuple[int, int]:
        """Lowest and highest level."""
        return levels(self.bits, self.symmetric)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (any shape, floating point) on its grid, in its dtype."""
        if not (self.observing or self.enabled):
            return x
        if is_divided(x):  # this rank's part of the features, or all of them: rounded where it lies
            parts = _ranks_of_parts(x)
            self.in_parts = bool(parts)
            part = self._apply_to(x.to_local(), parts)
            from torch.distributed.tensor import DTensor

            return DTensor.from_local(part, x.device_mesh, x.placements, run_check=False)
        return self._apply_to(x, ())

    def _apply_to(self, x: Tensor, parts: tuple[Any, ...]) -> Tensor:
        common = self.common
        if common is not None:
            common.look_at(x)
        if self.enabled and self.dynamic:
            return dynamic_rounded(x, self.bits, self.symmetric, self.row_dims, parts)
        grid = (self.numbers, self.levels)
        known = None if common is None or self.learning else common.results.get(grid)
        one_pass = self.enabled and not self.learning and known is None
        made, seen = self._in_one_pass(x.detach()) if one_pass else (None, None)
        if self.observing and not self.dynamic and x.numel():
            seen = self._note(x.detach(), seen)
        if not self.enabled:
            return x
        if self.learning:
            take = _Taker(self, self.unit())
            return rounded(x, self.scale, self.zero_point, self.levels, take, numbers=self.numbers)
        if known is not None:
            return known
        held = {"clips": self._clips(seen[0]), "rows": seen[1]} if seen else {}
        y = rounded(x, self.scale, self.zero_point, self.levels, numbers=self.numbers, **held, made=made)
        if common is not None and self.numbers is not None:
            common.results[grid] = y
        return y

    def _in_one_pass(self, x: Tensor) -> tuple[Tensor | None, _Seen | None]:
        """``x`` on the grid, and what was seen on the way; None and None where that takes more than a pass."""
        width = width_of_rows(x)
        if self.numbers is None or width is None:
            return None, None
        (scale, offset), (lowest, highest) = self.numbers, self.levels
        found = fused.rounded(x, width, scale, lowest - offset, highest - offset)
        if found is None:
            return None, None
        y, low, high = found
        return y, ends_of_rows(RowEnds(low=low, high=high, width=width))

    def _note(self, x: Tensor, seen: _Seen | None) -> _Seen:
        """Takes down what ``x`` holds, and returns it; ``seen`` is that where it is known."""
        if self.common is not None:
            seen = self.common.ends = self.common.ends or seen or ends_of(x)
        ends, rows = seen or ends_of(x)
        self.__dict__["_ends"] = of_both(self._ends, ends)  # a module's own way to set is slow
        if self.counts is not None:
            valid = self.rows()
            real = x if valid is None or len(valid) != len(x) else x[valid]
            counts = histogram(real)
            self._tally = counts if self._tally is None else self._tally + counts
        return ends, rows

    def _clips(self, ends: Ends) -> Clips:
        """What the present grid clips of a tensor with these ends."""
        if self.numbers is None or isinstance(ends, Tensor):
            return "perhaps"
        (scale, offset), (lowest, highest), (low, high) = self.numbers, self.levels, ends
        beyond = max(
            lowest - offset + low / scale, high / scale - highest + offset
        )  # steps past the last level
        return "perhaps" if not beyond < 0.5 else "rim" if beyond > 0.49 else "nothing"

    @property
    def seen(self) -> Tensor | None:
        """(-lowest, highest) of what this rank has seen since the observer last asked: float32 [2]."""
        return None if self._ends is None else as_tensor(self._ends)

    def take_seen(self) -> Tensor | None:
        """As ``seen``, which begins anew."""
        seen, self._ends = self.seen, None
        return seen

    def tally(self) -> Tensor:
        """The histogram since it was last asked for, of what this rank has seen: int64, like ``counts``."""
        assert self.counts is not None
        counts, self._tally = self._tally, None
        return torch.zeros_like(self.counts) if counts is None else counts

    def take_pull(self) -> Tensor:
        """The sum of what backward has found for the step size since it was last asked: 0-dim float32."""
        pull, self._pull = self._pull, None
        return torch.zeros_like(self.scale) if pull is None else pull

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Take the range ``low`` to ``high`` (0-dim) and its grid."""
        scale, zero_point = grid_of(low, high, self.bits, self.symmetric)
        for name, value in (("low", low), ("high", high), ("scale", scale), ("zero_point", zero_point)):
            getattr(self, name).copy_(value)

    def settle(self) -> None:
        """The end of its phase: nothing is observed any more, the grid is applied."""
        self.observing, self.learning, self.enabled, self.ready = False, False, True, True
        self.numbers, self.common = None, None
        self.counts = None
        if self.learned:
            del self.pull_mean, self.pull_square
            self.learned = False
            if not self.zero_point.is_meta:
                self._widen()

    def _widen(self) -> None:
        """Let the range be that of the learned grid."""
        lowest, highest = self.levels
        self.low.copy_((lowest - self.zero_point) * self.scale)
        self.high.copy_((highest - self.zero_point) * self.scale)

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        kind = "dynamic" if self.dynamic else "static"
        return f"bits={self.bits}, symmetric={self.symmetric}, {kind}, enabled={self.enabled}"


class _Taker:
    """Adds to a quantizer's pull what one backward finds, in units of the loss."""

    def __init__(self, quantizer: ActivationQuantizer, unit: float | Tensor) -> None:
        self._quantizer, self._unit = quantizer, unit

    def __call__(self, pull: Tensor) -> None:
        known, pull = self._quantizer._pull, pull / self._unit
        self._quantizer._pull = pull if known is None else known + pull


def _one() -> float:
    return 1.0


def _all_rows() -> Tensor | None:
    return None


def _ranks_of_parts(x: DTensor) -> tuple[Any, ...]:
    """Process groups of the mesh axes that hold other parts of the features."""
    axes = enumerate(x.placements)
    return tuple(x.device_mesh.get_group(axis) for axis, placement in axes if placement.is_shard())
