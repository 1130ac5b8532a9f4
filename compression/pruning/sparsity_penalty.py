"""Penalties that draw weights towards zero: L1, L2, elastic net, group lasso."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..run import Run
from ..technique import Check, Record, State, Technique, Traits
from ..weight import Weight
from ._mask import zero_fraction

Kind = Literal["l1", "l2", "elastic", "group"]


@dataclass(frozen=True, kw_only=True)
class SparsityPenalty(Technique):
    """Add ``strength × penalty(weights)`` to what is minimised.

    ``gradient`` adds the penalty's derivative to the gradient after backward, so that it is clipped and
    scaled by the optimizer like the rest. ``proximal`` leaves the gradient alone and applies the penalty's
    proximal map after the step, with the step's learning rate: that is the form that yields exact zeros.
    Penalties: l1 = Σ|w| · l2 = ½ Σw² · elastic = mix · l1 + (1 − mix) · l2 · group = Σ_g √n_g ‖w_g‖₂ over
    rows (output neurons, filters) or columns (inputs).

    source: Tibshirani 1996 (lasso); Zou and Hastie 2005 (elastic net); Yuan and Lin 2006 (group lasso, the
        √n weights); Parikh and Boyd 2014, Proximal Algorithms, section 6.5 (the maps).
    cost: no memory; one to two elementwise passes a step, for groups one all-reduce of a vector of group
        norms for each parameter whose groups are cut by the mesh.
    finalize: delivers weights as they are; the exact zeros of the proximal form are kept by later phases.
    """

    kind: Kind = "l1"
    strength: float = 1e-4
    """Weight of the penalty against the loss (a mean over samples or tokens)."""
    form: Literal["gradient", "proximal"] = "proximal"
    mix: float = 0.5
    """Elastic: share of L1, the rest is L2."""
    groups: Literal["rows", "columns"] = "rows"
    """Group lasso: dim 0 (outputs) or dim 1 (inputs) numbers the groups; other shapes are one group a row."""

    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {"kind": "l1", "strength": 0.5},
        {"kind": "l2", "strength": 0.5, "form": "gradient"},
        {"kind": "elastic", "strength": 0.1, "form": "gradient", "match": "*"},
        {"kind": "group", "strength": 0.3},
        {"kind": "group", "strength": 0.3, "groups": "columns", "form": "gradient"},
    )

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        if self.strength <= 0.0:
            raise ValueError(f"strength={self.strength}: want more than 0 (leave the technique out for none)")
        if not 0.0 <= self.mix <= 1.0:
            raise ValueError(f"mix={self.mix}: want 0 (all L2) to 1 (all L1)")

    def after_backward(self, run: Run) -> None:
        """Gradient form: add the penalty's derivative."""
        if self.form == "gradient":
            for weight in run.weights(self.match):
                if weight.grad is not None:
                    self._add_derivative(weight)

    def after_step(self, run: Run) -> None:
        """Proximal form: shrink, by learning rate × strength."""
        if self.form == "proximal":
            for weight in run.weights(self.match):
                self._shrink(weight, run.learning_rate * self.strength)

    def checks(self, run: Run) -> list[Check]:
        """The penalty's term is at work: it is positive on the model's own weights, or has driven all to zero."""
        weights = run.weights(self.match)
        term = run.total(weights, [w.live().abs().sum(dtype=torch.float64) for w in weights])
        zeros = zero_fraction(run, weights)
        run.log("penalty_l1_norm", term)
        run.log("penalty_sparsity", zeros)
        at_work = 1.0 if run.count(weights) and (float(term) > 0.0 or zeros == 1.0) else 0.0
        return [Check(quantity="penalty at work", requested=1.0, achieved=at_work)]

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Name the parameters whose exact zeros later phases keep (proximal form)."""
        return {"zeros": self.matched(model) if self.form == "proximal" and self.kind != "l2" else []}

    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(writes="dense", gives="zeros", owns=False) if self.form == "proximal" else Traits()

    def _add_derivative(self, weight: Weight) -> None:
        grad, local, strength = weight.grad, weight.local, self.strength
        assert grad is not None
        if self.kind == "group":
            grad.add_(
                local / self._norms(weight).clamp_min(1e-12), alpha=strength * self._size(weight) ** 0.5
            )
            return
        l1, l2 = self._parts()
        if l1:
            grad.add_(local.sign(), alpha=strength * l1)
        if l2:
            grad.add_(local, alpha=strength * l2)

    def _shrink(self, weight: Weight, amount: float) -> None:
        local = weight.local
        if self.kind == "group":
            local.mul_(group_factor(self._norms(weight), amount * self._size(weight) ** 0.5))
            return
        l1, l2 = self._parts()
        if l1:
            local.copy_(soft_threshold(local, amount * l1))
        if l2:
            local.div_(1.0 + amount * l2)

    def _parts(self) -> tuple[float, float]:
        return {"l1": (1.0, 0.0), "l2": (0.0, 1.0)}.get(self.kind, (self.mix, 1.0 - self.mix))

    def _kept_dim(self, weight: Weight) -> int:
        return 1 if self.groups == "columns" and len(weight.shape) > 1 else 0

    def _norms(self, weight: Weight) -> Tensor:
        """[1, …, local groups, …, 1] Euclidean norm of each whole group, over all its parts."""
        kept = self._kept_dim(weight)
        dims = [d for d in range(len(weight.shape)) if d != kept]
        return weight.sum(weight.local.square(), dims).sqrt()

    def _size(self, weight: Weight) -> int:
        return weight.shape.numel() // max(weight.shape[self._kept_dim(weight)], 1)


def soft_threshold(weight: Tensor, amount: float) -> Tensor:
    """The proximal map of ``amount · ‖·‖₁``: move towards zero by ``amount``, stop exactly there. Any shape."""
    return torch.nn.functional.softshrink(weight, amount)


def group_factor(norms: Tensor, amount: float) -> Tensor:
    """Factor of each group under the proximal map of ``amount · ‖·‖₂``: 0 where the norm is at most ``amount``."""
    return (1.0 - amount / norms.clamp_min(1e-38)).clamp_min(0.0)
