"""Dynamic network surgery: prune and splice while the dense weights keep learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..quantile import exact_quantile
from ..ramp import ramped
from ..run import Run
from ..technique import Check, Record, State, Technique, Traits
from ..weight import Weight
from ._mask import as_factor, hold, mask_of, refuse_beyond, rounded_share, sparsity_check


@dataclass(frozen=True, kw_only=True)
class NetworkSurgery(Technique):
    """Prune what falls below a lower threshold, splice back what rises above an upper one.

    The model computes with masked weights; the optimizer moves dense ones with the gradient taken there, so
    that a wrongly pruned weight can grow and return. A mask is renewed with probability
    ``(1 + gamma · step) ** -power`` until ``stop``; then it is frozen and only kept weights go on learning.

    Two ways to say how much: ``sparsity`` (thresholds follow the exact quantile of the dense magnitudes along
    a cubic ramp that ends at two thirds of ``stop``; the share is met when the mask freezes), or ``rate``, the
    paper's constant c for each parameter by itself: thresholds ``(1 ± margin) · max(mean + c · std, 0)`` of the
    magnitudes at the first step.

    source: Guo, Yao and Chen 2016, arXiv:1608.04493; the constants and the form of the probability as in the
        authors' published Caffe layers. Unlike there, biases are left alone unless ``match`` names them.
    cost: five bytes a weight (mask and the dense copy); about six elementwise passes a step; a new
        quantile (two passes, two all-reduces of 768 KiB together) every ``every`` steps.
    finalize: delivers dense-shaped weights with exact zeros, which later phases keep.
    """

    sparsity: float | None = None
    """Share of zeros when the mask freezes, 0 to below 1."""
    rate: float | None = None
    """The paper's c: thresholds from each parameter's mean and deviation. Give this or ``sparsity``."""
    scope: Literal["global", "layer"] = "global"
    """With ``sparsity``: one quantile over all matching weights, or the same share in each."""
    margin: float = 0.1
    """The thresholds lie this share below and above the middle one."""
    gamma: float = 0.0001
    power: float = 1.0
    stop: float | int = 0.75
    """When the mask freezes: a float is a fraction of the phase, an int a step."""
    every: int = 16
    """Steps from one quantile to the next; the masks follow the thresholds at every step."""

    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {"sparsity": 0.9, "every": 2},
        {"sparsity": 0.8, "scope": "layer", "every": 1, "gamma": 1.0},
        {"rate": 0.5, "match": ("fc1.weight", "*.bias")},
    )
    bytes_per_weight: ClassVar[float] = 5.0

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        if (self.sparsity is None) == (self.rate is None):
            raise ValueError(
                f"sparsity={self.sparsity} and rate={self.rate}: want exactly one of them (a target share, or"
                " the paper's constant c)"
            )
        if self.sparsity is not None and not 0.0 <= self.sparsity < 1.0:
            raise ValueError(f"sparsity={self.sparsity}: want a share from 0 to below 1 (0.95 = 95 % zeros)")
        if not 0.0 <= self.margin < 1.0:
            raise ValueError(f"margin={self.margin}: want 0 to below 1")
        if self.gamma < 0 or self.every < 1:
            raise ValueError(f"gamma={self.gamma}, every={self.every}: want gamma from 0 and every from 1")

    def before_step(self, run: Run) -> None:
        """Before anything moves: masks that never freeze would deliver another share. raises: ConfigError."""
        if run.step == 1:
            refuse_beyond(run, "pruning.network_surgery.stop", self.stop)

    def after_backward(self, run: Run) -> None:
        """Once the mask is frozen, pruned weights take no part in the step."""
        if run.memory.get("frozen"):
            for weight in run.weights(self.match):
                if weight.grad is not None:
                    weight.grad.mul_(as_factor(mask_of(run, weight)))

    def after_step(self, run: Run) -> None:
        """Prune and splice by the dense weights, then let the model compute with the masked ones."""
        weights = run.weights(self.match)
        if not run.memory.get("frozen"):
            if run.step >= max(run.at(self.stop), 1):
                self._freeze(run, weights)
            else:
                self._operate(run, weights)
        frozen = run.memory.get("frozen")
        for weight in weights:
            mask = mask_of(run, weight)
            if frozen:
                hold(weight, mask)
            else:
                weight.project(lambda local, mask=mask: local.mul_(as_factor(mask)))

    def checks(self, run: Run) -> list[Check]:
        """When frozen, and at the end: the target share. Before: the masks' own zeros are in the model."""
        weights = run.weights(self.match)
        count = max(run.count(weights), 1)
        if (run.memory.get("frozen") or run.step >= run.steps) and self.sparsity is not None:
            by_layer = self.scope == "layer"
            wanted = (
                rounded_share(run, weights, self.sparsity)
                if by_layer
                else round(self.sparsity * count) / count
            )
            return [sparsity_check(run, weights, wanted)]
        pruned = run.total(weights, [(~mask_of(run, w)).sum() for w in weights])
        return [sparsity_check(run, weights, float(pruned) / count)]

    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(writes="working", gives="zeros")

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Name the parameters whose zeros are delivered."""
        return {"zeros": self.matched(model)}

    # ── thresholds

    def _operate(self, run: Run, weights: list[Weight]) -> None:
        self._renew_thresholds(run, weights)
        probability = (1.0 + self.gamma * (run.step - 1)) ** -self.power
        for weight in weights:
            at = run.note(weight).get("threshold", 0.0)
            # One draw for each parameter, as in the paper's layers; the same on every rank and every mesh.
            if at > 0.0 and run.uniform(weight.name) < probability:
                mask = mask_of(run, weight)
                low, high = (1.0 - self.margin) * at, (1.0 + self.margin) * at
                mask.copy_(splice(weight.local, mask, low, high))

    def _renew_thresholds(self, run: Run, weights: list[Weight]) -> None:
        if self.rate is not None:
            if run.step == 1:
                for weight in weights:
                    run.note(weight)["threshold"] = _paper_threshold(weight, self.rate)
        elif (run.step - 1) % self.every == 0:
            thresholds = self._thresholds(run, weights, self._share(run))
            for weight, threshold in zip(weights, thresholds, strict=True):
                run.note(weight)["threshold"] = threshold

    def _thresholds(self, run: Run, weights: list[Weight], share: float) -> list[float]:
        """Magnitude at or below which ``share`` of the dense weights lie; -1 where that is none of them."""
        if self.scope == "global":
            k = round(share * run.count(weights))
            return [_kth(run, weights, k, [w.local for w in weights], True) if k else -1.0] * len(weights)
        counts = [round(share * weight.shape.numel()) for weight in weights]
        return [
            _kth(run, [weight], k, [weight.local], False) if k else -1.0
            for weight, k in zip(weights, counts, strict=True)
        ]

    def _share(self, run: Run) -> float:
        end = max(run.at(self.stop) * 2 // 3, 1)
        return ramped(run.step, begin=0, end=end, target=self.sparsity or 0.0, ramp="cubic")

    def _freeze(self, run: Run, weights: list[Weight]) -> None:
        """The last masks meet the wanted share by the fewest changes to those there are.

        Too few zeros: the smallest kept weights go. Too many: the largest pruned ones come back. A new cut
        through all dense weights would swap many around the threshold at this last moment, and splice in
        weights that never learnt to work together: the loss would jump.
        """
        run.memory["frozen"] = True
        if self.sparsity is None:
            return
        groups = [weights] if self.scope == "global" else [[weight] for weight in weights]
        for group in groups:
            together = self.scope == "global"
            count = run.count(weights) if together else group[0].shape.numel()
            wanted = round(self.sparsity * count)
            zeros = self._zeros(run, group, together)
            if zeros < wanted:
                _prune_smallest(run, group, wanted, together)
            elif zeros > wanted:
                _restore_largest(run, group, count - (zeros - wanted), together)

    def _zeros(self, run: Run, group: list[Weight], together: bool) -> int:
        pruned = [(~mask_of(run, weight)).sum() for weight in group]
        return int(run.total(group, pruned) if together else group[0].add_over_parts(pruned[0]))


def splice(dense: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """The new mask: False at or below ``low``, True above ``high``, the old one between.

    dense: weights of any shape; mask: bool of that shape; returns: bool of that shape.
    """
    magnitude = dense.abs()
    # Compared into floats and turned into bools: on a CPU that takes half the time of a comparison into bools.
    above = torch.gt(magnitude, high, out=torch.empty_like(magnitude)).bool()
    return above | (mask & magnitude.gt_(low).bool())


def _prune_smallest(run: Run, group: list[Weight], k: int, together: bool) -> None:
    kept = [
        weight.local.abs().mul_(mask_of(run, weight)) for weight in group
    ]  # pruned ones count as smallest
    threshold = _kth(run, group, k, kept, together)
    for weight, magnitude in zip(group, kept, strict=True):
        mask_of(run, weight).logical_and_(magnitude > threshold)


def _restore_largest(run: Run, group: list[Weight], k: int, together: bool) -> None:
    pruned = [
        weight.local.abs().mul_(~mask_of(run, weight)) for weight in group
    ]  # kept ones count as smallest
    threshold = _kth(run, group, k, pruned, together)
    for weight, magnitude in zip(group, pruned, strict=True):
        mask_of(run, weight).logical_or_(magnitude > threshold)


def _kth(run: Run, group: list[Weight], k: int, values: list[Tensor], together: bool) -> float:
    """The k-th smallest value over the whole mesh, or over the parts of the one weight in ``group``."""
    if together:
        return float(run.kth_magnitude(group, k, values))
    return float(exact_quantile(values, k, group[0].add_over_parts))


def _paper_threshold(weight: Weight, rate: float) -> float:
    magnitude = weight.local.abs().double()
    count = weight.shape.numel()
    mean = weight.sum(magnitude).sum() / count
    square = weight.sum(magnitude.square()).sum() / count
    deviation = (square - mean * mean).clamp_min(0).sqrt()
    return max(float(mean + rate * deviation), 0.0)
