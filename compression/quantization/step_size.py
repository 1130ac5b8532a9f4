"""Learned step sizes: what the loss wants of them, and how they follow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .grid import exact, levels, symmetric_scale

_RATE = 2e-3  # a step size changes by at most about this share a step
_MEAN, _SQUARE = 0.1, 0.01  # shares of the newest pull in the averages
_NOTHING = 1e-12  # a pull below that is none


def first_step_size(largest: Tensor, mean: Tensor, bits: int) -> Tensor:
    """Where a learned step size of a symmetric grid begins: at twice the mean magnitude over √(highest level).

    But never beyond the whole range, which that exceeds many times at 8 bits.   largest, mean: of the magnitudes,
    one shape.   source: Esser et al. 2020, arXiv:1902.08153, section 2.1 (the first value).
    """
    wanted = exact(2 * mean / math.sqrt(levels(bits, True)[1]))
    return torch.minimum(wanted, symmetric_scale(largest, bits))


def pulls(dense: Tensor, working: Tensor, grad: Tensor, inside: Tensor) -> Tensor:
    """The loss's derivative by the logarithm of the step size, value by value (sum it over those that share one).

    The paper's derivative by the step size s is ``round(v/s) - v/s`` within the grid and the end level beyond it,
    times the gradient at the working value; times s, that is ``working - dense`` and ``working``.

    dense, working, grad: one shape.   inside: 1 where the value was not clipped, 0 elsewhere.
    source: Esser et al. 2020, arXiv:1902.08153, equation 3.
    """
    return grad * (working - dense * inside)


def follow_(
    scales: Sequence[Tensor],
    pulled: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    count: int,
    progress: float,
) -> None:
    """Move step sizes (in place) against their pulls, in proportion to themselves, ever more slowly.

    The update is Adam's, on the logarithm. It does not depend on how large pulls are (for an optimizer whose steps do,
    the paper scales them with 1/√(number of values · highest level)), nor on the weights' own learning rate.

    means, squares: running averages of the pulls, renewed in place.   count: updates so far, this one included.
    progress: 0 to 1, how much of the time for learning is over.   A pull that is not finite counts as none.
    source: Kingma and Ba 2015, arXiv:1412.6980, for the form of the update.
    """
    rate = _RATE * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
    for scale, pull, mean, square in zip(scales, pulled, means, squares, strict=True):
        pull = torch.where(torch.isfinite(pull), pull, 0.0)
        mean.lerp_(pull, _MEAN)
        square.lerp_(pull * pull, _SQUARE)
        deviation = (square / (1 - (1 - _SQUARE) ** count)).sqrt_().add_(_NOTHING)
        direction = mean / (1 - (1 - _MEAN) ** count) / deviation
        scale.copy_(exact(scale * torch.exp(-rate * direction)))
