"""Magnitude pruning: the smallest weights become zero while training, along a ramp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..matching import matching_names
from ..quantile import exact_quantile
from ..ramp import Ramp, ramped
from ..run import Run
from ..technique import Check, Record, State, Technique, Traits
from ..weight import Weight
from ._mask import hold, hold_gradient, mask_of, refuse_beyond, rounded_share, sparsity_check


@dataclass(frozen=True, kw_only=True)
class Magnitude(Technique):
    """Zero the weights of smallest magnitude, a growing share of them, and keep them at zero.

    A mask is renewed every ``every`` steps from ``begin`` to ``end``; between and after, masked weights stay
    exactly zero through momentum, weight decay and Adam, and their gradients do not count. Pruned weights do
    not come back (that is `pruning.network_surgery`).

    source: Han et al. 2015, arXiv:1506.02626 (magnitude); Zhu and Gupta 2017, arXiv:1710.01878 (cubic ramp).
    cost: one byte a weight for the mask; two elementwise passes a step, two more with two all-reduces of
        768 KiB together when the mask is renewed.
    finalize: delivers dense-shaped weights with exact zeros, which later phases keep.
    """

    sparsity: float | dict[str, float] = 0.5
    """Share of zeros at the end, 0 to below 1; for ``per_layer`` a mapping glob → share."""
    scope: Literal["global", "uniform", "per_layer"] = "global"
    """One threshold for all · the same share in each parameter · the share given for each glob."""
    ramp: Ramp = "cubic"
    begin: float | int = 0.0
    """First step of the ramp: a float is a fraction of the phase, an int a step."""
    end: float | int = 0.75
    every: int = 10
    """Steps from one mask to the next on the ramp."""

    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {"sparsity": 0.8, "every": 2},
        {"sparsity": 0.7, "scope": "uniform", "ramp": "linear", "every": 1},
        {"sparsity": {"fc1.*": 0.9, "fc2.weight": 0.3}, "scope": "per_layer", "ramp": "one_shot", "begin": 2},
    )
    bytes_per_weight: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        shares = self.sparsity.values() if isinstance(self.sparsity, dict) else [self.sparsity]
        for share in shares:
            if not 0.0 <= share < 1.0:
                raise ValueError(f"sparsity={share}: want a share from 0 to below 1 (0.8 = 80 % zeros)")
        if isinstance(self.sparsity, dict) != (self.scope == "per_layer"):
            raise ValueError(
                f"scope={self.scope!r} with sparsity={self.sparsity!r}: a mapping of globs goes with per_layer,"
                " one number with global and uniform"
            )
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
            self._renew(run)
        if self._begun(run):
            for weight in self._weights(run):
                hold(weight, mask_of(run, weight))

    def checks(self, run: Run) -> list[Check]:
        """Zeros against the share that the last renewed mask was made for; at the end against the whole of it."""
        weights = self._weights(run)
        over = run.step >= run.steps
        if self.scope != "per_layer":
            final = _rounded(run, weights, self.sparsity, self.scope) if over else 0.0  # pyright: ignore[reportArgumentType]
            return [sparsity_check(run, weights, max(run.memory.get("sparsity", 0.0), final))]
        requested = 1.0 if over else run.memory.get("progress", 0.0)
        return [
            sparsity_check(run, run.weights(glob), share * requested)
            for glob, share in self._shares().items()
        ]

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Name the parameters whose zeros are delivered."""
        return {"zeros": self.matched(model)}

    def matched(self, model: nn.Module) -> list[str]:
        """The parameters that ``match`` (or, per layer, the globs) select."""
        shapes = {name: p.shape for name, p in model.named_parameters()}
        if self.scope == "per_layer":
            return matching_names(shapes, tuple(self._shares()))
        return matching_names(shapes, self.match)

    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(writes="dense", gives="zeros")

    # ── when, where, how much

    def _weights(self, run: Run) -> list[Weight]:
        return run.weights(tuple(self._shares()) if self.scope == "per_layer" else self.match)

    def _shares(self) -> dict[str, float]:
        return self.sparsity if isinstance(self.sparsity, dict) else {}

    def _begun(self, run: Run) -> bool:
        return run.step >= max(run.at(self.begin), 1)

    def _due(self, run: Run) -> bool:
        first, last = max(run.at(self.begin), 1), max(run.at(self.end), 1)
        if self.ramp == "one_shot":
            return run.step == first
        return run.step == last or (first <= run.step < last and (run.step - first) % self.every == 0)

    def _renew(self, run: Run) -> None:
        first, last = max(run.at(self.begin), 1), max(run.at(self.end), 1)
        progress = ramped(run.step, begin=first, end=last, target=1.0, ramp=self.ramp)
        run.memory["progress"] = progress
        if self.scope == "global":
            share = progress * self.sparsity  # pyright: ignore[reportOperatorIssue]
            weights = self._weights(run)
            run.memory["sparsity"] = _prune_together(run, weights, share)
        elif self.scope == "uniform":
            share = progress * self.sparsity  # pyright: ignore[reportOperatorIssue]
            for weight in self._weights(run):
                _prune_alone(run, weight, share)
            run.memory["sparsity"] = rounded_share(run, self._weights(run), share)
        else:
            for glob, share in self._shares().items():
                _prune_together(run, run.weights(glob), share * progress)


def _rounded(run: Run, weights: list[Weight], share: float, scope: str) -> float:
    """``share`` in whole weights, as the scope rounds it. Collective."""
    if scope == "uniform":
        return rounded_share(run, weights, share)
    count = run.count(weights)
    return round(share * count) / max(count, 1)


def _prune_together(run: Run, weights: list[Weight], share: float) -> float:
    """One threshold over all ``weights`` of the mesh; returns the share of whole weights that it asks for."""
    count = run.count(weights)
    k = round(share * count)
    if k == 0:
        return 0.0
    threshold = run.kth_magnitude(weights, k)
    for weight in weights:
        torch.gt(weight.local.abs(), threshold, out=mask_of(run, weight))
    return k / count


def _prune_alone(run: Run, weight: Weight, share: float) -> None:
    """The same share in this one parameter, over exactly the ranks that hold parts of it."""
    k = round(share * weight.shape.numel())
    if k:
        threshold: Tensor = exact_quantile([weight.local], k, weight.add_over_parts)
        torch.gt(weight.local.abs(), threshold, out=mask_of(run, weight))
