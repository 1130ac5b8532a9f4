"""Activations on a grid, with gradients that pass straight through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .ends import RowEnds
from .grid import affine_grid, levels, symmetric_scale

Clips = Literal["perhaps", "rim", "nothing"]
"""What of a tensor a grid clips: not known; nothing, but rounding may go past the last level; nothing."""


def rounded(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    ends: tuple[int, int],
    take: Callable[[Tensor], None] | None = None,
    *,
    numbers: tuple[float, int] | None = None,
    clips: Clips = "perhaps",
    rows: RowEnds | None = None,
    made: Tensor | None = None,
) -> Tensor:
    """``x`` on the grid of ``scale`` and ``zero_point`` (0-dim) with levels ``ends[0] … ends[1]``, in its dtype.

    The gradient is that of a clamp: 1 within the grid's ends, 0 beyond them.
    take: is given, in backward, the derivative of the loss by the logarithm of the scale (0-dim float32).
    numbers: scale and zero point as numbers, if they are at hand: that saves two of six passes.
    clips: what is known of ``x``, with ``numbers`` at hand: where nothing is clipped, the gradient passes unchanged.
    rows: the ends of its rows, with ``numbers`` at hand: only rows with something clipped are kept for backward.
    made: the values on the grid, where they are known.
    source: Bengio et al. 2013, arXiv:1308.3432 (straight-through); for ``take`` see `step_size`.
    """
    # Without a tensor that wants a gradient there is no backward: a first layer's input wants none.
    wants = None if take is None else torch.zeros((), device=x.device, requires_grad=True)
    known = _Known(numbers=numbers, clips=clips, rows=rows, made=made)
    return _Round.apply(x, scale, zero_point, ends, take, wants, known)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, kw_only=True)
class _Known:
    """See `rounded`. One object, so that autograd does not look at the tensors in it."""

    numbers: tuple[float, int] | None
    clips: Clips
    rows: RowEnds | None
    made: Tensor | None


class _Round(torch.autograd.Function):
    """Elementwise passes in place: torch's own fake_quantize takes several times as long on a CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        ends: tuple[int, int],
        take: Any,
        wants: Any,
        known: _Known,
    ) -> Tensor:
        numbers, clips, rows = known.numbers, known.clips, known.rows
        y = _on_grid(x, scale, zero_point, ends, known) if known.made is None else known.made
        ctx.numbers, ctx.ends, ctx.take = numbers, ends, take
        ctx.inside, ctx.width = clips != "perhaps" and take is None, None
        if ctx.inside:
            return y
        if rows is not None and numbers is not None and take is None:
            beyond = rows.beyond(*_clipped_from(ends, *numbers))
            if len(beyond) <= len(rows.low) // 4:
                ctx.width, ctx.inside = rows.width, not len(beyond)
                ctx.save_for_backward(beyond, x.view(-1, rows.width)[beyond])
                return y
        ctx.save_for_backward(x, scale, zero_point, *(() if take is None else (y,)))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if ctx.inside:
            return grads[0], *[None] * 6
        if ctx.width is not None:
            beyond, x = ctx.saved_tensors
            grad = grads[0].clone(memory_format=torch.contiguous_format)
            by_rows = grad.view(-1, ctx.width)
            by_rows[beyond] = unclipped(by_rows[beyond], x, *_clipped_from(ctx.ends, *ctx.numbers))
            return grad, *[None] * 6
        x, scale, zero_point, *y = ctx.saved_tensors
        if ctx.numbers is not None:
            scale, zero_point = ctx.numbers
        grad = unclipped(grads[0], x, *_clipped_from(ctx.ends, scale, zero_point))
        if ctx.take is not None:
            ctx.take(_dot(grads[0], y[0]) - _dot(grad, x))
        return grad, *[None] * 6


def _on_grid(x: Tensor, scale: Tensor, zero_point: Tensor, ends: tuple[int, int], known: _Known) -> Tensor:
    q = (x.float() / scale).round_()
    if known.numbers is None:
        q.add_(zero_point).clamp_(*ends).sub_(zero_point)
    elif known.clips != "nothing":
        q.clamp_(ends[0] - known.numbers[1], ends[1] - known.numbers[1])
    return q.mul_(scale).to(x.dtype)


def _clipped_from(ends: tuple[int, int], scale: Any, zero_point: Any) -> tuple[Any, Any]:
    """Up to where and from where values are clipped: what rounds to the end levels is not."""
    return (ends[0] - 0.5 - zero_point) * scale, (ends[1] + 0.5 - zero_point) * scale


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.float().flatten(), b.float().flatten())


def unclipped(grad: Tensor, x: Tensor, lowest: Tensor | float, highest: Tensor | float) -> Tensor:
    """``grad`` where ``x`` lies between the two (numbers, 0-dim, or one for each row), zero elsewhere."""
    at_hand = not isinstance(lowest, Tensor) or (lowest.numel() == 1 and lowest.device.type == "cpu")
    if at_hand:  # one pass in place of three
        return torch.ops.aten.hardtanh_backward(grad, x, float(lowest), float(highest))
    return grad * (x > lowest).logical_and_(x < highest)


def dynamic_rounded(x: Tensor, bits: int, symmetric: bool, row_dims: int, parts: tuple[Any, ...]) -> Tensor:
    """``x`` with every row of its last ``row_dims`` dims on the grid of that row's range.

    parts: process groups whose ranks hold other features of the same rows; the range is that of all of them.
    """
    dims = tuple(range(x.ndim - row_dims, x.ndim))
    low, high = x.detach().amin(dims, keepdim=True), x.detach().amax(dims, keepdim=True)
    for group in parts:
        dist.all_reduce(low, dist.ReduceOp.MIN, group=group)
        dist.all_reduce(high, dist.ReduceOp.MAX, group=group)
    if symmetric:
        scale = symmetric_scale(torch.maximum(low.abs(), high.abs()), bits)
        zero_point = torch.zeros_like(scale)
    else:
        scale, zero_point = affine_grid(low, high, bits)
    return rounded(x, scale, zero_point, levels(bits, symmetric))
