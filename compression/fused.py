"""Work on float32 values of a CPU, in one pass where torch makes several; the same values (sums are more exact).

The pass is compiled C (see `c_functions`). Where that is not to be had, for other devices and dtypes, and where torch
has more threads for its passes than the one pass saves, torch does it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..c_functions import load

_SOURCE = Path(__file__).with_name("fused.c")
_TAKES = {
    "masked": "npp",
    "splice": "nppff",
    "snap": "nnppff",
    "rounded": "nnppfffpp",
    "sums": "npp",
    "slopes": "nppff",
}
# No product may be added to a sum unrounded; the others let rintf become one instruction.
_FLAGS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


@cache
def library() -> Any:
    """The compiled functions of fused.c; None where they cannot be had."""
    return load(_SOURCE, _TAKES, flags=_FLAGS)


def masked_(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` times ``mask`` (bool, of its shape), in place: zeros where that is False."""
    if _fits(x, saves=2) and _goes_with(mask, x):
        library().forgepress_masked(x.numel(), x.data_ptr(), mask.data_ptr())
        increment_version(
            x
        )  # as torch's own functions do: autograd and others see by it that values have changed
        return x
    # As bytes of 0 and 1, without a copy: a product with those takes half the time of one with bools.
    return x.mul_(mask.view(torch.uint8))


def splice_(mask: Tensor, dense: Tensor, low: float, high: float) -> Tensor:
    """Renew ``mask`` in place: False where a magnitude is at or below ``low``, True above ``high``, else as it was.

    dense: weights of any shape; mask: bool of that shape.
    """
    if _fits(dense, saves=7) and _goes_with(mask, dense):
        library().forgepress_splice(dense.numel(), dense.data_ptr(), mask.data_ptr(), low, high)
        increment_version(mask)
        return mask
    magnitude = dense.abs()
    # Compared into floats and turned into bools: on a CPU that takes half the time of a comparison into bools.
    above = torch.gt(magnitude, high, out=torch.empty_like(magnitude)).bool()
    return mask.logical_and_(magnitude.gt_(low).bool()).logical_or_(above)


def snap_(x: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
    """Move every value of ``x`` to the nearest of (lowest … highest) · scale, in place; halves to the even level.

    scale: float32, of one value, or of one for each place of dim 0 ([rows, 1, …]), or as `torch.mul` takes it.
    """
    rows = scale.numel()
    if rows in (1, len(x) if x.ndim else 1) and scale.shape[:1].numel() == rows and _fits(x, saves=4):
        held = scale.detach().contiguous()
        width = x.numel() // rows
        library().forgepress_snap(rows, width, x.data_ptr(), held.data_ptr(), lowest, highest)
        increment_version(x)
        return x
    return x.div_(scale).round_().clamp_(lowest, highest).mul_(scale)


def rounded(
    x: Tensor, width: int, scale: float, lowest: int, highest: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(the nearest of (lowest … highest) · scale to every value, lowest and highest value of each row of ``width``).

    returns: a tensor like ``x`` and two float32 [x.numel() / width], NaN for a row that holds one; None where it
        is no single pass.
    """
    if not _fits(x, saves=4) or scale == 0.0:
        return None
    rows = x.numel() // width
    y, low, high = torch.empty_like(x), x.new_empty(rows), x.new_empty(rows)
    places = (y.data_ptr(), scale, lowest, highest, low.data_ptr(), high.data_ptr())
    library().forgepress_rounded(rows, width, x.data_ptr(), *places)
    return y, low, high


def sums(x: Tensor) -> Tensor:
    """(Σ|x|, Σx²): float32 [2]."""
    if not _fits(x, saves=2):
        return torch.stack([x.abs().sum(), x.square().sum()])
    found = torch.empty(2, dtype=torch.float64)
    library().forgepress_sums(x.numel(), x.data_ptr(), found.data_ptr())
    return found.float()


def slopes(x: Tensor, l1: float, l2: float) -> Tensor:
    """``l1 · sign(x) + l2 · x``: the derivative of l1 · Σ|x| + l2 · ½ Σx²."""
    if _fits(x, saves=2):
        y = torch.empty_like(x)
        library().forgepress_slopes(x.numel(), x.data_ptr(), y.data_ptr(), l1, l2)
        return y
    if not l1:
        return x * l2
    found = x.sign().mul_(l1)
    return found.add_(x, alpha=l2) if l2 else found


def _fits(x: Tensor, *, saves: int) -> bool:
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() and x.numel() > 0
    if torch.compiler.is_compiling():  # it knows no addresses, and makes one pass of several by itself
        return False
    return plain and type(x) in _PLAIN and torch.get_num_threads() <= saves and library() is not None


def _goes_with(mask: Tensor, x: Tensor) -> bool:
    return mask.shape == x.shape and mask.dtype == torch.bool and mask.is_contiguous()


_PLAIN = (Tensor, torch.nn.Parameter)  # a subclass may lie elsewhere than its address says
