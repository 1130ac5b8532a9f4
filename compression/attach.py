"""A loss at an inner activation: the identity forward, one more gradient backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, term: Tensor, factor: Any) -> Tensor:
        ctx.like, ctx.factor = term, factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0], torch.ones_like(ctx.like) * ctx.factor, None


def attach(x: Tensor, term: Tensor, factor: float | Tensor = 1.0) -> Tensor:
    """``x``, through whose backward the gradient of ``factor × term`` (0-dim) flows too.

    The term needs no way to the end of the network: a stage of a pipeline can add to the loss by itself.
    """
    return _Attach.apply(x, term, factor)  # pyright: ignore[reportReturnType]
