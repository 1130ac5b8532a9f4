"""Network slimming: channels whose normalisation scale goes to zero while training are removed at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..matching import SCALES
from ..run import Run
from ..structure import Graph, Group, recut
from ..technique import Check, Example, Record, State, Technique, Traits, Widths
from ._removal import Budget, Of, example_in, refuse_wrong_budget, rehearse, remove, traced, widths_of
from ._scales import scale_names, scales_in
from ._unit_budget import Candidate, by_rank, least_of
from ._unit_scores import scale_scores
from .sparsity_penalty import soft_threshold


@dataclass(frozen=True, kw_only=True)
class NetworkSlimming(Technique):
    """Draw the scales of BatchNorm towards zero while training, then remove the channels of the smallest ones.

    A channel goes with everything that hangs on it: the filter or neuron that makes it, its normalisation, what the
    next layers read of it, and the channels that it is added to. Scales of channels that are coupled (a residual
    stream) count by their mean. Without a channel, batch and instance normalisation leave the others as they are;
    layer, group and RMS normalisation, which look at all channels together, do not, and need more fine-tuning. That
    is the next phase's; slimming again in a later phase is the paper's multi-pass scheme.

    ``gradient`` adds ``strength · sign(scale)`` to the gradient after backward, the authors' sub-gradient;
    ``proximal`` applies the soft threshold after the step with the step's learning rate, which makes exact zeros.

    source: Liu et al. 2017, arXiv:1708.06519; the sub-gradient and the global threshold as in the authors' code
        (liuzhuang13/slimming, train.lua and prune/), which takes the ``units`` of all layers in one ranking; for the
        MLP of table 3 they take the same share of each layer (``scope: uniform``).
    cost: a pass over the scales a step, which is one number a channel; no memory. At the end of the phase a trace of
        the model on shapes alone and about fifteen rehearsals of the cut without numbers.
    finalize: delivers a model with fewer channels; the record names what was kept, and optimizer moments follow it.
    """

    match: str | tuple[str, ...] = SCALES
    """Which scales: ``scales`` (of all normalisation layers), or globs over their names."""
    share: float = 0.5
    """How much is removed at the end of the phase, above 0 and below 1."""
    of: Of = "units"
    """Share of the channels that slimming ranks · of the model's parameters · of its multiply-adds."""
    strength: float = 1e-4
    """Weight of Σ|scale| against the loss (a mean over samples or tokens)."""
    form: Literal["gradient", "proximal"] = "gradient"
    scope: Literal["global", "uniform"] = "global"
    """One ranking of all scales · the same share of each layer."""
    multiple: int = 8
    """Widths that stay are multiples of this, or whole: fast on hardware, and the tensor axis must divide it."""
    most: float = 0.9
    """No layer loses more than this share of its channels; below 1, so that none goes empty."""

    changes_model: ClassVar[bool] = True
    traces: ClassVar[bool] = True
    contract: ClassVar[
        tuple[dict[str, Any], ...]
    ] = ()  # on nets with scales: test_every_removal_on_every_mesh.py

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        refuse_wrong_budget(self.share, self.most, (self.multiple,))
        if self.strength <= 0.0:
            raise ValueError(
                f"strength={self.strength}: want more than 0 (pruning.structured with scores: scale ranks scales "
                "without a penalty)"
            )

    def after_backward(self, run: Run) -> None:
        """Gradient form: add the sub-gradient of the penalty."""
        if self.form == "gradient":
            for weight in scales_in(run, self.match):
                if weight.grad is not None:
                    weight.grad.add_(weight.local.sign(), alpha=self.strength)

    def after_step(self, run: Run) -> None:
        """Proximal form: shrink by learning rate × strength."""
        if self.form == "proximal":
            for weight in scales_in(run, self.match):
                weight.local.copy_(soft_threshold(weight.local, run.learning_rate * self.strength))

    def checks(self, run: Run) -> list[Check]:
        """The penalty has scales to pull at, on the model's own weights."""
        scales = scales_in(run, self.match)
        term = run.total(scales, [w.live().abs().sum(dtype=torch.float64) for w in scales])
        run.log("slimming_l1_norm", term)
        at_work = 1.0 if float(term) > 0.0 else 0.0
        return [Check(quantity="penalty at work", requested=1.0, achieved=at_work)]

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Rank, choose, cut; asserted on the model that was cut.

        raises: ConfigError where the share cannot be met, NoOpError where the model has not lost what was chosen.
        """
        example = example_in(state)
        graph = traced(model, example)
        return remove(model, graph, [self._budget(self._ranked(model, graph))], example)

    def rebuild(self, model: nn.Module, record: Record) -> None:
        """Cut a fresh model in the same places, without tracing it."""
        recut(model, record)

    def foretell(self, model: nn.Module, example: Example) -> Widths:
        """Trace and rehearse on shapes alone: what the removal needs must be there before the first step."""
        graph = traced(model, example)
        ranked = [(group, torch.zeros(group.size)) for group, _ in self._ranked(model, graph)]
        rehearse(graph, [self._budget(ranked)])
        return widths_of([group for group, _ in ranked], lambda group: self.multiple)

    def matched(self, model: nn.Module) -> list[str]:
        """Names of the scales."""
        return scale_names(dict(model.named_modules()), self.match)

    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(writes="dense" if self.form == "proximal" else "", gives="shapes")

    def _ranked(self, model: nn.Module, graph: Graph) -> list[tuple[Group, Tensor]]:
        """The groups whose channels carry a matching scale and may go, with their scores."""
        names, tensors = set(self.matched(model)), dict(model.named_parameters())
        scored = [(g, scale_scores(g, tensors, names)) for g in graph.groups if g.fixed is None]
        ranked = [(group, scores) for group, scores in scored if scores is not None]
        if not ranked:
            raise ConfigError(
                f"pruning.network_slimming: no channels with a scale of {', '.join(sorted(names))} can be removed; "
                "want normalisation behind layers whose outputs other layers read, or pruning.structured"
            )
        return ranked

    def _budget(self, ranked: Sequence[tuple[Group, Tensor]]) -> Budget:
        compare = by_rank if self.scope == "uniform" else (lambda x: x)
        candidates = [
            Candidate(
                name=group.name,
                scores=compare(scores),
                multiple=self.multiple,
                least=least_of(group.size, self.most),
            )
            for group, scores in ranked
        ]
        return Budget(candidates=candidates, share=self.share, of=self.of)
