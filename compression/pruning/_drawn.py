"""The penalty of activations: its value forward, its derivative backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import fused


def elastic_penalty(x: Tensor, l1: float, l2: float) -> Tensor:
    """``l1 · Σ|x| + l2 · ½ Σx²``: 0-dim.   x: any shape, floating point.

    cost: a pass forward and one backward on a CPU with a compiler, else up to four and three; keeps ``x``.
    """
    return _Elastic.apply(x, l1, l2)  # pyright: ignore[reportReturnType]


class _Elastic(torch.autograd.Function):
    """What autograd would make of the formula takes twice as many passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, l1: float, l2: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.l1, ctx.l2 = l1, l2
        if _at_once(x):
            magnitudes, squares = fused.sums(x)
            return l1 * magnitudes + 0.5 * l2 * squares
        value = x.new_zeros(())
        if l1:
            value = value + l1 * x.abs().sum()
        if l2:
            value = value + 0.5 * l2 * x.square().sum()
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        if _at_once(x):
            factor = float(grads[0])
            return fused.slopes(x, ctx.l1 * factor, ctx.l2 * factor), None, None
        derivative = x.sign().mul_(ctx.l1 * grads[0]) if ctx.l1 else torch.zeros_like(x)
        return (derivative.addcmul_(x, ctx.l2 * grads[0]) if ctx.l2 else derivative), None, None


def _at_once(x: Tensor) -> bool:
    """Whether numbers may come to the host: a GPU would be waited for, and torch.compile has none."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
