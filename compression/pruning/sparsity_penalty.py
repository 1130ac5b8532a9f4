"""Penalties that draw weights or activations towards zero: L1, L2, elastic net, group lasso."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..matching import WEIGHTS, matching_modules
from ..ramp import ramped
from ..run import Run
from ..technique import Check, Record, State, Technique, Traits
from ..weight import Weight
from ._drawn import elastic_penalty
from ._groups import group_elements, group_factor, group_norms, soft_threshold
from ._mask import largest_anywhere, refuse_beyond, zero_fraction

Kind = Literal["l1", "l2", "elastic", "group"]
_TERM = "activation_penalty"


@dataclass(frozen=True, kw_only=True)
class SparsityPenalty(Technique):
    """Add ``strength × penalty`` to what is minimised.

    On weights, ``gradient`` adds the penalty's derivative to the gradient after backward, so that it is clipped and
    scaled by the optimizer like the rest. ``proximal`` leaves the gradient alone and applies the penalty's
    proximal map after the step, with the step's learning rate (also under Adam, whose own scaling of each weight
    it does not follow): that is the form that yields exact zeros. ``match: scales`` means the scale vectors of all
    normalisation layers.
    Penalties: l1 = Σ|w| · l2 = ½ Σw² · elastic = mix · l1 + (1 − mix) · l2 · group = Σ_g √n_g ‖w_g‖₂ over
    rows (output neurons, filters) or columns (inputs), or over blocks of ``group_size`` of them: with a head's size,
    the rows of query, key and value projections and the columns of the output projection are groups of heads.

    On activations, ``match`` names modules, and the penalty of their outputs is summed over features and averaged
    over the items of the global batch (rows; tokens for language models), as the loss is.

    source: Tibshirani 1996 (lasso); Zou and Hastie 2005 (elastic net); Yuan and Lin 2006 (group lasso, the
        √n weights); Parikh and Boyd 2014, Proximal Algorithms, section 6.5 (the maps); Georgiadis 2019,
        arXiv:1812.04056 (L1 on activations).
    cost: no memory; one to two elementwise passes a step, for groups one all-reduce of a vector of group
        norms for each parameter whose groups are cut by the mesh. On activations two passes over each output in
        every micro-batch, no communication.
    finalize: delivers weights as they are; the exact zeros of the proximal form are kept by later phases.
    """

    kind: Kind = "l1"
    strength: float = 1e-4
    """Weight of the penalty against the loss (a mean over samples or tokens)."""
    form: Literal["gradient", "proximal"] = "proximal"
    mix: float = 0.5
    """Elastic: share of L1, the rest is L2."""
    target: Literal["weights", "activations"] = "weights"
    """What is penalised: matching parameters, or the outputs of matching modules (form gradient; no groups)."""
    groups: Literal["rows", "columns"] = "rows"
    """Group lasso: dim 0 (outputs) or dim 1 (inputs) numbers the groups; other shapes are one group a row."""
    group_size: int = 1
    """Group lasso: neighbouring rows or columns that form one group, such as the size of a head."""
    ramp: Literal["constant", "linear", "cubic", "cosine"] = "constant"
    """How the strength grows from 0 at the first step to all of it at ``end``."""
    end: float | int = 0.5
    """End of a ramp: a float is a fraction of the phase, an int a step."""

    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {"kind": "l1", "strength": 0.5},
        {"kind": "l2", "strength": 0.5, "form": "gradient"},
        {"kind": "elastic", "strength": 0.1, "form": "gradient", "match": "*"},
        {"kind": "group", "strength": 0.3},
        {"kind": "group", "strength": 0.3, "groups": "columns", "form": "gradient"},
        {"kind": "group", "strength": 0.1, "group_size": 5, "ramp": "cosine"},
        {"kind": "elastic", "strength": 0.1, "form": "gradient", "target": "activations", "match": "relu*"},
    )

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        if self.strength <= 0.0:
            raise ValueError(f"strength={self.strength}: want more than 0 (leave the technique out for none)")
        if not 0.0 <= self.mix <= 1.0:
            raise ValueError(f"mix={self.mix}: want 0 (all L2) to 1 (all L1)")
        if self.group_size < 1:
            raise ValueError(f"group_size={self.group_size}: want 1 or more rows or columns in a group")
        if self.target == "activations":
            self._refuse_for_activations()

    def _refuse_for_activations(self) -> None:
        if self.form != "gradient":
            raise ValueError(
                f"form={self.form!r} with target='activations': want gradient, as nothing there is stored"
            )
        if self.kind == "group":
            raise ValueError("kind='group' with target='activations': want l1, l2 or elastic")
        if self.match == WEIGHTS:
            raise ValueError(
                "match='weights' with target='activations': want globs over module names, such as 'relu*'"
            )

    def set_up(self, run: Run) -> None:
        """On activations: watch the outputs of the matching modules that live here."""
        if self.target == "activations":
            for name in matching_modules(run.modules, self.match):
                run.hook(name, lambda module, args, output, name=name: self._penalise(run, name, output))

    def before_step(self, run: Run) -> None:
        """Before anything moves: a ramp that the phase is too short for. raises: ConfigError."""
        if run.step == 1 and self.ramp != "constant":
            refuse_beyond(run, "pruning.sparsity_penalty.end", self.end)

    def after_backward(self, run: Run) -> None:
        """Gradient form: add the penalty's derivative."""
        if self.form == "gradient" and self.target == "weights":
            strength = self._strength(run)
            for weight in run.weights(self.match):
                if weight.grad is not None:
                    self._add_derivative(weight, strength)

    def after_step(self, run: Run) -> None:
        """Proximal form: shrink, by learning rate × strength."""
        if self.form == "proximal":
            for weight in run.weights(self.match):
                self._shrink(weight, run.learning_rate * self._strength(run))

    def checks(self, run: Run) -> list[Check]:
        """The penalty's term is at work: it is positive on the model's own weights, or has driven all to zero."""
        if self.target == "activations":
            if largest_anywhere(run, float(_TERM in run.attached)):
                run.memory["seen"] = (
                    True  # a run that goes on from a checkpoint is checked before its next step
                )
            achieved = float(run.memory.get("seen", False))
            return [Check(quantity="penalty at work", requested=1.0, achieved=achieved)]
        weights = run.weights(self.match)
        term = run.total(weights, [w.live().abs().sum(dtype=torch.float64) for w in weights])
        zeros = zero_fraction(run, weights)
        run.log("penalty_l1_norm", term)
        run.log("penalty_sparsity", zeros)
        run.log("penalty_strength", self._strength(run))
        at_work = 1.0 if run.count(weights) and (float(term) > 0.0 or zeros == 1.0) else 0.0
        return [Check(quantity="penalty at work", requested=1.0, achieved=at_work)]

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Name the parameters whose exact zeros later phases keep (proximal form)."""
        return {"zeros": self.matched(model) if self.form == "proximal" and self.kind != "l2" else []}

    def matched(self, model: nn.Module) -> list[str]:
        """The parameters, or on activations the modules, that ``match`` selects."""
        if self.target == "activations":
            return matching_modules(dict(model.named_modules()), self.match)
        return super().matched(model)

    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(writes="dense", gives="zeros", owns=False) if self.form == "proximal" else Traits()

    # ── on weights

    def _strength(self, run: Run) -> float:
        if self.ramp == "constant":
            return self.strength
        end = max(run.at(self.end), 1)
        return ramped(run.step, begin=0, end=end, target=self.strength, ramp=self.ramp)

    def _add_derivative(self, weight: Weight, strength: float) -> None:
        grad, local = weight.grad, weight.local
        assert grad is not None
        if self.kind == "group":
            norms, elements = self._groups(weight)
            grad.add_(local / norms.clamp_min(1e-12), alpha=strength * elements**0.5)
            return
        l1, l2 = self._parts()
        if l1:
            grad.add_(local.sign(), alpha=strength * l1)
        if l2:
            grad.add_(local, alpha=strength * l2)

    def _shrink(self, weight: Weight, amount: float) -> None:
        local = weight.local
        if self.kind == "group":
            norms, elements = self._groups(weight)
            local.mul_(group_factor(norms, amount * elements**0.5))
            return
        l1, l2 = self._parts()
        if l1:
            local.copy_(soft_threshold(local, amount * l1))
        if l2:
            local.div_(1.0 + amount * l2)

    def _parts(self) -> tuple[float, float]:
        return {"l1": (1.0, 0.0), "l2": (0.0, 1.0)}.get(self.kind, (self.mix, 1.0 - self.mix))

    def _groups(self, weight: Weight) -> tuple[Tensor, int]:
        dim = 1 if self.groups == "columns" and len(weight.shape) > 1 else 0
        return group_norms(weight, dim, self.group_size), group_elements(weight, dim, self.group_size)

    # ── on activations

    def _penalise(self, run: Run, name: str, output: Any) -> Any:
        """The output whose backward also carries the penalty's derivative."""
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"pruning.sparsity_penalty.match={self.match!r}: module {name} gives a {type(output).__name__}; want"
                " modules that give one tensor, such as the activation or the layer inside it"
            )
        x = output.float()
        valid = run.now.valid
        if valid is not None:  # rows that only fill up the micro-batch are not of the global batch
            x = x * valid.reshape(-1, *[1] * (x.ndim - 1))
        penalty = elastic_penalty(x, *self._parts())
        return run.attach(output, self._strength(run) * penalty / run.items, name=_TERM)
