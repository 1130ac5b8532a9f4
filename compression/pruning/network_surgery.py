"""Dynamic network surgery: prune and splice while the dense weights keep learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ...errors import ConfigError
from ..fused import masked_, splice_
from ..matching import matching_parameters
from ..ramp import ramped
from ..run import Run
from ..technique import Check, Record, State, Technique, Traits
from ..weight import Weight
from ._budget import Budget, Sparsity, budget_checks, budgets, check_sparsity, matched_by
from ._mask import hold, hold_gradient, mask_of, refuse_beyond, sparsity_check
from ._pattern import input_dim


@dataclass(frozen=True, kw_only=True)
class NetworkSurgery(Technique):
    """Prune what falls below a lower threshold, splice back what rises above an upper one.

    The model computes with masked weights; the optimizer moves dense ones with the gradient taken there, so
    that a wrongly pruned weight can grow and return. A mask is renewed with probability
    ``(1 + gamma · step) ** -power`` until ``stop``; then it is frozen and only kept weights go on learning.

    Two ways to say how much: ``sparsity`` (thresholds follow the exact quantile of the dense magnitudes along
    a cubic ramp that ends at ``end``; the share is met when the mask freezes), or ``rate``, the paper's constant c
    for each parameter by itself: thresholds ``(1 ± margin) · max(mean + c · std, 0)`` of the magnitudes at the
    first step. A pattern ``"N:M"`` keeps, every ``every`` steps, the N of every M neighbours along the input dim
    whose dense magnitudes are largest, those of kept ones taken ``1 + margin`` and of pruned ones ``1 - margin``
    times.

    source: Guo, Yao and Chen 2016, arXiv:1608.04493; the constants and the form of the probability as in the
        authors' published Caffe layers. Unlike there, biases are left alone unless ``match`` names them. Patterns
        with dense weights behind them: Zhou et al. 2021, arXiv:2102.04010. Scopes as in `pruning.magnitude`.
    cost: five bytes a weight (mask and the dense copy); about four elementwise passes a step (ten
        without a C compiler); a new
        quantile (two passes, two all-reduces of 768 KiB together) every ``every`` steps.
    finalize: delivers dense-shaped weights with exact zeros, which later phases keep.
    """

    sparsity: Sparsity | None = None
    """Share of zeros when the mask freezes, 0 to below 1, or a pattern "N:M"; for ``per_layer`` a mapping glob → one
    of both."""
    rate: float | None = None
    """The paper's c: thresholds from each parameter's mean and deviation. Give this or ``sparsity``."""
    scope: Literal["global", "layer", "per_layer", "erdos_renyi", "erdos_renyi_kernel"] = "global"
    """With ``sparsity``: one quantile over all matching weights · the same share in each · what is given for each
    glob · each keeps a number that grows with outputs + inputs (and kernel), all together the share."""
    margin: float = 0.1
    """The thresholds lie this share below and above the middle one."""
    gamma: float = 0.0001
    power: float = 1.0
    stop: float | int = 0.75
    """When the mask freezes: a float is a fraction of the phase, an int a step."""
    end: float | int | None = None
    """End of the ramp, as ``stop``; by default two thirds of ``stop``."""
    every: int = 16
    """Steps from one quantile to the next; the masks follow the thresholds at every step."""

    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {"sparsity": 0.9, "every": 2},
        {"sparsity": 0.8, "scope": "layer", "every": 1, "gamma": 1.0},
        {"rate": 0.5, "match": ("fc1.weight", "*.bias")},
        {"sparsity": "2:4", "every": 2, "margin": 0.3},
    )
    bytes_per_weight: ClassVar[float] = 5.0

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        if (self.sparsity is None) == (self.rate is None):
            raise ValueError(
                f"sparsity={self.sparsity} and rate={self.rate}: want exactly one of them (a target share, or"
                " the paper's constant c)"
            )
        if self.sparsity is not None:
            check_sparsity(self.sparsity, self.scope)
        if not 0.0 <= self.margin < 1.0:
            raise ValueError(f"margin={self.margin}: want 0 to below 1")
        if self.gamma < 0 or self.every < 1:
            raise ValueError(f"gamma={self.gamma}, every={self.every}: want gamma from 0 and every from 1")

    def before_step(self, run: Run) -> None:
        """Before anything moves: masks that never freeze would deliver another share. raises: ConfigError."""
        if run.step == 1:
            refuse_beyond(run, "pruning.network_surgery.stop", self.stop)
            if self.end is not None and run.at(self.end) > run.at(self.stop):
                raise ConfigError(
                    f"pruning.network_surgery.end={self.end} lies after stop={self.stop}; want it before"
                )

    def after_backward(self, run: Run) -> None:
        """Once the mask is frozen, pruned weights take no part in the step."""
        if run.memory.get("frozen"):
            for weight in self._weights(run):
                hold_gradient(weight, mask_of(run, weight))

    def after_step(self, run: Run) -> None:
        """Prune and splice by the dense weights, then let the model compute with the masked ones."""
        if not run.memory.get("frozen"):
            if run.step >= max(run.at(self.stop), 1):
                self._freeze(run)
            else:
                self._operate(run)
        frozen = run.memory.get("frozen")
        for weight in self._weights(run):
            mask = mask_of(run, weight)
            if frozen:
                hold(weight, mask)
            else:
                weight.project(lambda local, mask=mask: masked_(local, mask))

    def checks(self, run: Run) -> list[Check]:
        """When frozen, and at the end: the target share. Before: the masks' own zeros are in the model."""
        if (run.memory.get("frozen") or run.step >= run.steps) and self.sparsity is not None:
            return budget_checks(run, self.match, self._budgets(run), 1.0)
        weights = self._weights(run)
        pruned = run.total(weights, [(~mask_of(run, w)).sum() for w in weights])
        return [sparsity_check(run, weights, float(pruned) / max(run.count(weights), 1))]

    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(writes="working", gives="zeros")

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Name the parameters whose zeros are delivered."""
        return {"zeros": self.matched(model)}

    def matched(self, model: nn.Module) -> list[str]:
        """The parameters that ``match`` (or, per layer, the globs) select."""
        return matching_parameters(model, matched_by(self.match, self.sparsity))

    def _weights(self, run: Run) -> list[Weight]:
        return run.weights(matched_by(self.match, self.sparsity))

    def _budgets(self, run: Run) -> list[Budget]:
        assert self.sparsity is not None
        return budgets(run, self.match, self.sparsity, self.scope)

    # ── before the freeze

    def _operate(self, run: Run) -> None:
        if (run.step - 1) % self.every == 0:
            self._renew_thresholds(run)
        probability = (1.0 + self.gamma * (run.step - 1)) ** -self.power
        for weight in self._weights(run):
            at = run.note(weight).get("threshold", 0.0)
            # One draw for each parameter, as in the paper's layers; the same on every rank and every mesh.
            if at > 0.0 and run.uniform(weight.name) < probability:
                low, high = (1.0 - self.margin) * at, (1.0 + self.margin) * at
                splice_(mask_of(run, weight), weight.local, low, high)

    def _renew_thresholds(self, run: Run) -> None:
        """The magnitudes at or below which the wanted share of the dense weights lies; for patterns the masks."""
        if self.rate is not None:
            if run.step == 1:
                for weight in self._weights(run):
                    run.note(weight)["threshold"] = _paper_threshold(weight, self.rate)
            return
        stop = run.at(self.stop)
        end = stop * 2 // 3 if self.end is None else run.at(self.end)
        progress = ramped(run.step, begin=0, end=max(end, 1), target=1.0, ramp="cubic")
        for budget in self._budgets(run):
            if budget.pattern is not None:
                self._follow_pattern(run, budget, progress)
                continue
            zeros = budget.zeros(progress)
            threshold = budget.kth(run, zeros) if zeros else -1.0
            for weight in budget.weights:
                run.note(weight)["threshold"] = threshold

    def _follow_pattern(self, run: Run, budget: Budget, progress: float) -> None:
        assert budget.pattern is not None
        for weight in budget.weights:
            mask = mask_of(run, weight)
            favour = torch.where(mask, 1.0 + self.margin, 1.0 - self.margin)
            dim = input_dim(run, weight)
            whole, put = weight.along(weight.local.abs() * favour, dim)
            mask.copy_(put(budget.pattern.mask(whole, dim, budget.pattern.kept(progress))))

    # ── the freeze

    def _freeze(self, run: Run) -> None:
        """The last masks meet the wanted share by the fewest changes to those there are.

        Too few zeros: the smallest kept weights go. Too many: the largest pruned ones come back. A new cut
        through all dense weights would swap many around the threshold at this last moment, and splice in
        weights that never learnt to work together: the loss would jump.
        """
        run.memory["frozen"] = True
        if self.sparsity is None:
            return
        for budget in self._budgets(run):
            if budget.pattern is not None:
                self._follow_pattern(run, budget, 1.0)
                continue
            wanted = budget.zeros(1.0)
            there = budget.add(run, [(~mask_of(run, weight)).sum() for weight in budget.weights])
            if there < wanted:
                _prune_smallest(run, budget, wanted)
            elif there > wanted:
                _restore_largest(run, budget, budget.count - (there - wanted))


def _prune_smallest(run: Run, budget: Budget, k: int) -> None:
    kept = [  # pruned ones count as smallest
        weight.local.abs().mul_(mask_of(run, weight)) for weight in budget.weights
    ]
    threshold = budget.kth(run, k, kept)
    for weight, magnitude in zip(budget.weights, kept, strict=True):
        mask_of(run, weight).logical_and_(magnitude > threshold)


def _restore_largest(run: Run, budget: Budget, k: int) -> None:
    pruned = [  # kept ones count as smallest
        weight.local.abs().mul_(~mask_of(run, weight)) for weight in budget.weights
    ]
    threshold = budget.kth(run, k, pruned)
    for weight, magnitude in zip(budget.weights, pruned, strict=True):
        mask_of(run, weight).logical_or_(magnitude > threshold)


def _paper_threshold(weight: Weight, rate: float) -> float:
    magnitude = weight.local.abs().double()
    count = weight.shape.numel()
    mean = weight.sum(magnitude).sum() / count
    square = weight.sum(magnitude.square()).sum() / count
    deviation = (square - mean * mean).clamp_min(0).sqrt()
    return max(float(mean + rate * deviation), 0.0)
