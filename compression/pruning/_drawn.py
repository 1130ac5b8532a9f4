"""The penalty of activations: its value forward, its derivative in two passes backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def elastic_penalty(x: Tensor, l1: float, l2: float) -> Tensor:
    """``l1 · Σ|x| + l2 · ½ Σx²``: 0-dim.   x: any shape, floating point.

    cost: a pass forward for each of the two that is not 0, two or three backward; keeps ``x``.
    """
    return _Elastic.apply(x, l1, l2)  # pyright: ignore[reportReturnType]


class _Elastic(torch.autograd.Function):
    """What autograd would make of the formula takes twice as many passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, l1: float, l2: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.l1, ctx.l2 = l1, l2
        value = x.new_zeros(())
        if l1:
            value = value + l1 * x.abs().sum()
        if l2:
            value = value + 0.5 * l2 * x.square().sum()
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        derivative = x.sign().mul_(ctx.l1 * grads[0]) if ctx.l1 else torch.zeros_like(x)
        return (derivative.addcmul_(x, ctx.l2 * grads[0]) if ctx.l2 else derivative), None, None
