"""Keep the zeros that an earlier phase delivered, whatever this phase does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..run import Run
from ..technique import Check, Record, State, Technique
from ._mask import hold, hold_gradient, mask_of, sparsity_check, zero_fraction


@dataclass(frozen=True, kw_only=True)
class KeepZeros(Technique):
    """Weights that are zero when the phase begins stay zero: through gradients, momentum, decay and penalties.

    A run puts it first in every phase after one that delivered zeros; it can be asked for by hand, for
    fine-tuning a model that was pruned elsewhere.

    source: the fixed mask of Han et al. 2015, arXiv:1506.02626, retraining step.
    cost: one byte a weight; two elementwise passes a step.
    finalize: delivers the same zeros.
    """

    bytes_per_weight: ClassVar[float] = 1.0
    trains: ClassVar[bool | None] = None

    def before_step(self, run: Run) -> None:
        """Remember where the zeros are, before the first step moves anything."""
        if "sparsity" in run.memory:
            return
        weights = run.weights(self.match)
        for weight in weights:
            with torch.no_grad():
                mask_of(run, weight).copy_(weight.local != 0)
        run.memory["sparsity"] = zero_fraction(run, weights)

    def after_backward(self, run: Run) -> None:
        """Take the zeros' gradients out of the step."""
        for weight in run.weights(self.match):
            hold_gradient(weight, mask_of(run, weight))

    def after_step(self, run: Run) -> None:
        """Write the zeros again."""
        for weight in run.weights(self.match):
            hold(weight, mask_of(run, weight))

    def checks(self, run: Run) -> list[Check]:
        """No zero was lost."""
        return [sparsity_check(run, run.weights(self.match), run.memory.get("sparsity", 0.0))]

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Name the parameters whose zeros are delivered."""
        return {"zeros": self.matched(model)}
