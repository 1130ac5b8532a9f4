"""What pruning techniques share: masks as saved state, and zeros counted on the model itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import ConfigError
from ..fused import masked_
from ..run import Run
from ..technique import Check
from ..weight import Weight


def mask_of(run: Run, weight: Weight) -> Tensor:
    """The saved mask of one weight (bool, shaped like the local part; True = kept), all True at first."""
    return run.buffer(weight, "mask", fill=True, dtype=torch.bool)


def hold(weight: Weight, mask: Tensor) -> None:
    """Write zeros where the mask is False, over whatever momentum and weight decay have done there."""
    masked_(weight.local, mask)


def hold_gradient(weight: Weight, mask: Tensor) -> None:
    """A pruned weight takes no part in the step: not in the clipping norm, not in the moments."""
    if weight.grad is not None:
        masked_(weight.grad, mask)


def largest_anywhere(run: Run, value: float) -> float:
    """The largest of a number that every rank brings, over all ranks that hold other weights. Collective."""
    device = run.all_weights[0].local.device if run.all_weights else None
    return float(run.reduce(torch.tensor(value, dtype=torch.float64, device=device), "max"))


def zero_fraction(run: Run, weights: Sequence[Weight]) -> float:
    """Share of exact zeros in the parameters that the model computes with, over the whole mesh. Collective."""
    zeros = run.total(weights, [(w.live() == 0).sum() for w in weights])
    return float(zeros) / max(run.count(weights), 1)


def sparsity_check(run: Run, weights: Sequence[Weight], requested: float) -> Check:
    """Zeros requested against zeros there; a tolerance of half a weight, as counts are whole numbers."""
    count = run.count(weights)
    return Check(
        quantity="sparsity",
        requested=requested,
        achieved=zero_fraction(run, weights),
        tolerance=0.5 / max(count, 1),
    )


def refuse_beyond(run: Run, setting: str, when: float | int) -> None:
    """raises: ConfigError where ``when`` lies behind the last step of the phase, so that it never comes."""
    if run.at(when) > run.steps:
        raise ConfigError(
            f"{setting}={when}: given a point after the phase's last step, {run.steps}; want a step up to that, or "
            "a fraction of the phase such as 0.75"
        )
