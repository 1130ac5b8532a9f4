"""Magnitude pruning: the smallest weights become zero while training, along a ramp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ...errors import ConfigError
from ..matching import matching_parameters
from ..ramp import Ramp, ramped
from ..run import Run
from ..technique import Check, Record, State, Technique, Traits
from ..weight import Weight
from ._budget import Budget, Sparsity, budget_checks, budgets, check_sparsity, matched_by
from ._mask import hold, hold_gradient, mask_of, refuse_beyond
from ._pattern import input_dim


@dataclass(frozen=True, kw_only=True)
class Magnitude(Technique):
    """Zero the weights of smallest magnitude, a growing share of them, and keep them at zero.

    A mask is renewed every ``every`` steps from ``begin`` to ``end``; between and after, masked weights stay
    exactly zero through momentum, weight decay and Adam, and their gradients do not count. Pruned weights do
    not come back (that is `pruning.network_surgery`), and after ``end`` the mask is frozen.

    A pattern ``"N:M"`` keeps the N largest of every M neighbours along the input dim (for a convolution the input
    channels, at each kernel position by itself); on the ramp a group goes from M to N one by one. Sparse
    tensor cores read 2:4; torch's kernels take it for matrices whose sizes are multiples of 16 to 128, by dtype.

    source: Han et al. 2015, arXiv:1506.02626 (magnitude); Zhu and Gupta 2017, arXiv:1710.01878 (cubic ramp);
        Mocanu et al. 2018, arXiv:1707.04780, and Evci et al. 2020, arXiv:1911.11134 (Erdős–Rényi, with kernels);
        Mishra et al. 2021, arXiv:2104.08378 (2:4).
    cost: one byte a weight for the mask; two elementwise passes a step, two more with two all-reduces of
        768 KiB together when the mask is renewed. A pattern sorts its groups then, and gathers the input dim
        where the mesh cuts it.
    finalize: delivers dense-shaped weights with exact zeros, which later phases keep.
    """

    sparsity: Sparsity = 0.5
    """Share of zeros at the end, 0 to below 1, or a pattern "N:M"; for ``per_layer`` a mapping glob → one of both."""
    scope: Literal["global", "uniform", "per_layer", "erdos_renyi", "erdos_renyi_kernel"] = "global"
    """One threshold for all · the same share in each parameter · what is given for each glob · each keeps a number
    that grows with outputs + inputs (and kernel), all together the share."""
    ramp: Ramp = "cubic"
    begin: float | int = 0.0
    """First step of the ramp: a float is a fraction of the phase, an int a step."""
    end: float | int = 0.75
    """Last step of the ramp: from here the mask is frozen."""
    every: int = 10
    """Steps from one mask to the next on the ramp."""

    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {"sparsity": 0.8, "every": 2},
        {"sparsity": 0.7, "scope": "uniform", "ramp": "linear", "every": 1},
        {"sparsity": {"fc1.*": 0.9, "fc2.weight": 0.3}, "scope": "per_layer", "ramp": "one_shot", "begin": 2},
        {"sparsity": "2:4", "end": 0.75, "every": 2},
        {"sparsity": 0.8, "scope": "erdos_renyi", "every": 3},
    )
    bytes_per_weight: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        check_sparsity(self.sparsity, self.scope)
        if self.every < 1:
            raise ValueError(f"every={self.every}: want 1 step or more")

    def before_step(self, run: Run) -> None:
        """Before anything moves: a ramp that the phase is too short for would never deliver.

        raises: ConfigError naming the setting.
        """
        if run.step == 1 and self.ramp == "one_shot":
            refuse_beyond(run, "pruning.magnitude.begin", self.begin)
        elif run.step == 1:
            refuse_beyond(run, "pruning.magnitude.end", self.end)
            if run.at(self.begin) > run.at(self.end):
                raise ConfigError(
                    f"pruning.magnitude.begin={self.begin} lies after end={self.end}; want it before"
                )

    def after_backward(self, run: Run) -> None:
        """Take masked gradients out of the step."""
        if self._begun(run):
            for weight in self._weights(run):
                hold_gradient(weight, mask_of(run, weight))

    def after_step(self, run: Run) -> None:
        """Renew the mask where the ramp says so, then hold the zeros."""
        if self._due(run):
            first, last = self._ends(run)
            progress = ramped(run.step, begin=first, end=last, target=1.0, ramp=self.ramp)
            for budget in budgets(run, self.match, self.sparsity, self.scope):
                prune(run, budget, progress)
            run.memory["progress"] = progress
        if self._begun(run):
            for weight in self._weights(run):
                hold(weight, mask_of(run, weight))

    def checks(self, run: Run) -> list[Check]:
        """Zeros against the share that the last renewed mask was made for; at the end against the whole of it."""
        progress = 1.0 if run.step >= run.steps else run.memory.get("progress", 0.0)
        found = budgets(run, self.match, self.sparsity, self.scope)
        return budget_checks(run, self.match, found, progress)

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Name the parameters whose zeros are delivered."""
        return {"zeros": self.matched(model)}

    def matched(self, model: nn.Module) -> list[str]:
        """The parameters that ``match`` (or, per layer, the globs) select."""
        return matching_parameters(model, matched_by(self.match, self.sparsity))

    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(writes="dense", gives="zeros")

    # ── when, where

    def _weights(self, run: Run) -> list[Weight]:
        return run.weights(matched_by(self.match, self.sparsity))

    def _ends(self, run: Run) -> tuple[int, int]:
        return max(run.at(self.begin), 1), max(run.at(self.end), 1)

    def _begun(self, run: Run) -> bool:
        return run.step >= self._ends(run)[0]

    def _due(self, run: Run) -> bool:
        first, last = self._ends(run)
        if self.ramp == "one_shot":
            return run.step == first
        return run.step == last or (first <= run.step < last and (run.step - first) % self.every == 0)


def prune(run: Run, budget: Budget, progress: float) -> None:
    """Write the masks of one budget: False for its smallest weights, and for those that were pruned before."""
    if budget.pattern is not None:
        for weight in budget.weights:
            dim = input_dim(run, weight)
            whole, put = weight.along(weight.local.abs(), dim)
            keep = put(budget.pattern.mask(whole, dim, budget.pattern.kept(progress)))
            mask_of(run, weight).logical_and_(keep)
    elif zeros := budget.zeros(progress):
        threshold = budget.kth(run, zeros)
        for weight in budget.weights:
            torch.gt(weight.local.abs(), threshold, out=mask_of(run, weight))
