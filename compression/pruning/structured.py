"""Structured pruning: whole filters, neurons and attention heads are scored and physically removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..matching import matching_parameters
from ..run import Run
from ..structure import Graph, Group, recut
from ..technique import Example, Record, State, Technique, Traits, Widths
from ._removal import BLOCKS, Budget, Of, example_in, refuse_wrong_budget, rehearse, remove, traced, widths_of
from ._scales import scale_names
from ._unit_budget import Candidate, by_mean, by_rank, least_of
from ._unit_scores import block_scores, energy_scores, gathered_scores, makers, scale_scores, weight_scores
from ._unit_statistics import ENERGY, TAYLOR, gather_energy, gather_taylor, watch_energy

Score = Literal["l1", "l2", "taylor", "scale", "activation"]
Kind = Literal["channels", "neurons", "heads", "width", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Structured(Technique):
    """Remove the units of lowest score at the end of the phase, with everything that is coupled to them.

    Which weights go together is found by tracing the model (`compression.structure`): residual sums, concatenations,
    grouped convolutions, fused projections, query groups, gated MLPs. What cannot be traced is refused before the
    first step, and so is a budget that cannot be met. Scores of a unit, over all layers that make it:

    - ``l1``, ``l2``: norm of its weights, in units of the group's mean;
    - ``taylor``: running mean of (Σ weight · gradient)² of its rows, how much the loss would change;
    - ``scale``: mean |scale| of its normalisation layers, as in `pruning.network_slimming`;
    - ``activation``: energy that its activations bring to the layers that read them, √Σ E[x²] · ‖weights of x‖²,
      in units of the group's mean.

    source: Li et al. 2017, arXiv:1608.08710 (filters by norm); Molchanov et al. 2019, arXiv:1906.10771, equation 8
        (taylor, over the rows of a unit); Sun et al. 2024, arXiv:2306.11695 (activation: |weight| · ‖x‖); Fang et al.
        2023, arXiv:2301.12900 (coupled groups).
    cost: nothing a step for l1, l2 and scale; taylor one elementwise pass over the weights, activation one over the
        inputs of every layer and one all-reduce of two numbers a feature. At the end of the phase a trace of the
        model on shapes alone and, but for units, about fifteen rehearsals of the cut without numbers.
    finalize: delivers a smaller model of the same kind; the record names what was kept, and optimizer moments follow.
    """

    share: float | dict[str, float] = 0.5
    """How much is removed, above 0 and below 1; a mapping glob over parameters → share of the units they make."""
    of: Of = "units"
    """Share of the units that may go · of the model's parameters · of its multiply-adds for one row."""
    scope: Literal["global", "uniform"] = "global"
    """One ranking of all groups · the same share of each."""
    score: Score = "l2"
    kinds: tuple[Kind, ...] = ("channels", "neurons", "heads")
    """Which units may go: channels of convolutions, neurons of MLPs, attention heads, the width of a residual stream;
    or, by themselves, whole residual ``blocks``."""
    multiple: int = 8
    """Widths that stay are multiples of this, or whole: fast on hardware, and the tensor axis must divide it."""
    heads_multiple: int = 1
    """The same for attention heads (query groups where several heads share keys and values)."""
    most: float = 0.9
    """No group loses more than this share of its units; below 1, so that none goes empty."""

    changes_model: ClassVar[bool] = True
    traces: ClassVar[bool] = True
    delivers: ClassVar[tuple[str, ...]] = (TAYLOR, ENERGY)
    contract: ClassVar[tuple[dict[str, Any], ...]] = ({"score": "taylor"}, {"score": "activation"})

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        for share in self.share.values() if isinstance(self.share, dict) else [self.share]:
            refuse_wrong_budget(share, self.most, (self.multiple, self.heads_multiple))
        if isinstance(self.share, dict) and self.of != "units":
            raise ValueError(
                f"of={self.of!r} with a share for each glob: such shares are of units; want of: units"
            )
        if not self.kinds:
            raise ValueError("kinds=(): want at least one of channels, neurons, heads, width, blocks")
        if "blocks" in self.kinds and len(self.kinds) > 1:
            raise ValueError(
                f"kinds={list(self.kinds)}: no score compares a whole block with a channel or a head; ask for blocks"
                " in an entry of their own"
            )

    # ── while training

    def set_up(self, run: Run) -> None:
        """Watch what flows into the layers, where the score needs it."""
        if self.score == "activation":
            watch_energy(run)

    def after_backward(self, run: Run) -> None:
        """Gather the Taylor terms, where the score needs them."""
        if self.score == "taylor":
            gather_taylor(run, self._match())

    def after_step(self, run: Run) -> None:
        """Gather what the hooks have seen."""
        if self.score == "activation":
            gather_energy(run)

    # ── at its end

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Score, choose, cut; asserted on the model that was cut.

        raises: ConfigError where the budget cannot be met, NoOpError where the model has not lost what was chosen.
        """
        example = example_in(state)
        graph = traced(model, example)
        return remove(model, graph, self._budgets(graph, model, state), example)

    def rebuild(self, model: nn.Module, record: Record) -> None:
        """Cut a fresh model in the same places, without tracing it."""
        recut(model, record)

    def foretell(self, model: nn.Module, example: Example) -> Widths:
        """Trace and rehearse on shapes alone: what the removal needs must be there before the first step."""
        graph = traced(model, example)
        rehearse(graph, self._budgets(graph, model, None))
        if "blocks" in self.kinds:
            return {}
        return widths_of(self._groups(graph, model), self._multiple)

    def matched(self, model: nn.Module) -> list[str]:
        """The parameters by which groups are chosen."""
        return matching_parameters(model, self._match())

    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(gives="shapes")

    # ── groups, scores, budgets

    def _match(self) -> str | tuple[str, ...]:
        return tuple(self.share) if isinstance(self.share, dict) else self.match

    def _multiple(self, group: Group) -> int:
        return self.heads_multiple if group.kind == "heads" else self.multiple

    def _groups(self, graph: Graph, model: nn.Module) -> list[Group]:
        """The groups that may lose units: of a kind that was asked for, made by a parameter that matches.

        raises: ConfigError where there is none.
        """
        names = set(self.matched(model))
        chosen = [g for g in graph.free() if g.kind in self.kinds and makers(g) & names]
        if chosen:
            return chosen
        known = ", ".join(f"{g.name} ({g.kind}{': ' + g.fixed if g.fixed else ''})" for g in graph.groups[:8])
        raise ConfigError(
            f"pruning.structured: nothing of the kinds {', '.join(self.kinds)} may be removed where match="
            f"{self._match()!r}; the model has {known or 'no group of removable units'}"
        )

    def _budgets(self, graph: Graph, model: nn.Module, state: State | None) -> list[Budget]:
        """What is to go from what, with scores; without a state (nothing was gathered yet) all score alike."""
        if "blocks" in self.kinds:
            return [self._of_blocks(graph, model, state)]
        groups = self._groups(graph, model)
        if not isinstance(self.share, dict):
            return [self._of_groups(groups, self.share, model, state)]
        budgets, taken = [], set()
        for glob, share in self.share.items():
            names = set(matching_parameters(model, glob))
            mine = [g for g in groups if g.name not in taken and makers(g) & names]
            taken |= {g.name for g in mine}
            if mine:
                budgets.append(self._of_groups(mine, share, model, state))
        return budgets

    def _of_groups(
        self, groups: Sequence[Group], share: float, model: nn.Module, state: State | None
    ) -> Budget:
        compare = by_rank if self.scope == "uniform" else (lambda x: x)
        candidates = [
            Candidate(
                name=group.name,
                scores=compare(self._scores(group, model, state)),
                multiple=self._multiple(group),
                least=least_of(group.size, self.most),
            )
            for group in groups
        ]
        return Budget(candidates=candidates, share=share, of=self.of)

    def _of_blocks(self, graph: Graph, model: nn.Module, state: State | None) -> Budget:
        if len(graph.blocks) < 2 or isinstance(self.share, dict):
            raise ConfigError(
                f"pruning.structured: kinds: blocks wants one share and two residual blocks or more in a list or"
                f" sequence; the model has {', '.join(b.name for b in graph.blocks) or 'none'}"
            )
        scores = torch.zeros(len(graph.blocks), dtype=torch.float64)
        if state is not None:
            gathered = state.get(_GATHERED.get(self.score, ""), {})
            scales = scale_names(dict(model.named_modules()), "*")
            scores = block_scores(graph, self.score, dict(model.named_parameters()), gathered, scales)
        blocks = Candidate(name=BLOCKS, scores=scores, least=least_of(len(scores), self.most))
        return Budget(candidates=[blocks], share=self.share, of=self.of)

    def _scores(self, group: Group, model: nn.Module, state: State | None) -> Tensor:
        """[units] float64.   raises: ConfigError where nothing was measured of this group."""
        tensors = dict(model.named_parameters())
        if state is None and self.score != "scale":
            return torch.zeros(group.size, dtype=torch.float64)
        if self.score in ("l1", "l2"):
            scores = by_mean(weight_scores(group, tensors, norm=1 if self.score == "l1" else 2))
        elif self.score == "scale":
            scores = scale_scores(group, tensors, scale_names(dict(model.named_modules()), "*"))
        elif self.score == "taylor":
            scores = gathered_scores(group, (state or {}).get(TAYLOR, {}), "out")
        else:
            energy = energy_scores(group, tensors, (state or {}).get(ENERGY, {}))
            scores = energy if energy is None else by_mean(energy)
        if scores is not None and state is None:
            return torch.zeros(group.size, dtype=torch.float64)
        if scores is None:
            raise ConfigError(
                f"pruning.structured: score={self.score} says nothing about {group.name} ({group.kind}): "
                f"{_WANTS[self.score]}; leave it out with match (!…), or take score: l2"
            )
        return scores


_GATHERED = {"taylor": TAYLOR, "activation": ENERGY}
_WANTS: dict[str, str] = {
    "scale": "it has no normalisation layer with a scale",
    "taylor": "no gradient of what makes it was seen in this phase",
    "activation": "no trained linear layer or convolution reads it, or none ran in this phase",
}
