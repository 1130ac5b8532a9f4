"""Which units stay: one ranking over all groups, cut off where the budget is met, widths that hardware likes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError

Kept = dict[str, list[int]]
"""Group → the units that stay, ascending; groups that lose nothing are not in it."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One group of units that go together with what they are coupled to."""

    name: str
    scores: Tensor
    """float64 [units], comparable with those of other groups: the lowest go first, among equals the first."""
    multiple: int = 1
    """How many stay is a multiple of this (or all)."""
    least: int = 1
    """At least so many stay; 0 only where nothing hangs on the group, as a residual block."""

    def stays(self, wanted: int) -> int:
        """The number of units that stay where ``wanted`` were wanted: rounded up to the multiple."""
        size = self.scores.numel()
        fitting = math.ceil(max(wanted, self.least) / self.multiple) * self.multiple
        return min(fitting, size)

    def units(self, count: int) -> list[int]:
        """The ``count`` units of highest score, ascending."""
        order = torch.sort(self.scores, stable=True).indices
        return order[self.scores.numel() - count :].sort().values.tolist()


def choose(
    candidates: Sequence[Candidate], share: float, measure: Callable[[Kept], float], *, what: str
) -> tuple[Kept, float]:
    """The fewest units of lowest score whose removal takes away ``share`` of what ``measure`` counts.

    measure: kept units → share that is gone then; it must not fall when more units go.
    what:    what is counted, for the message.
    returns: (kept units of the groups that lose some, the share that is gone). It is at least ``share``, and
             more only by what the last unit, or the last multiple of units, brings.
    raises:  ConfigError where all that may go is less than ``share``.
    cost:    log2(units) calls of ``measure``.
    """
    order = _order(candidates)
    most = _kept(candidates, order, len(order))
    possible = measure(most)
    if possible < share:
        raise ConfigError(
            f"share={share:g} of the {what} is to go, but no more than {possible:.4g} can: every layer keeps some "
            f"units, and widths stay multiples ({_widths(candidates, most)}); lower share or multiple, raise most, "
            "or match more layers"
        )
    low, high = 0, len(order)  # the smallest cut that does lies in low … high
    while low < high:
        middle = (low + high) // 2
        if measure(_kept(candidates, order, middle)) >= share:
            high = middle
        else:
            low = middle + 1
    kept = _kept(candidates, order, low)
    return kept, measure(kept)


def _order(candidates: Sequence[Candidate]) -> Tensor:
    """The group of every unit of the model, by ascending score; among equals the order of groups and units."""
    groups = [torch.full((c.scores.numel(),), index) for index, c in enumerate(candidates)]
    scores = [c.scores.to(torch.float64) for c in candidates]
    if not groups:
        return torch.empty(0, dtype=torch.long)
    return torch.cat(groups)[torch.sort(torch.cat(scores), stable=True).indices]


def _kept(candidates: Sequence[Candidate], order: Tensor, cut: int) -> Kept:
    """What stays when the first ``cut`` units of the ranking are to go."""
    lost = torch.bincount(order[:cut], minlength=len(candidates)).tolist()
    kept: Kept = {}
    for candidate, wish in zip(candidates, lost, strict=True):
        size = candidate.scores.numel()
        count = candidate.stays(size - wish)
        if count < size:
            kept[candidate.name] = candidate.units(count)
    return kept


def _widths(candidates: Sequence[Candidate], kept: Mapping[str, Sequence[int]]) -> str:
    shown = [f"{c.name} {len(kept.get(c.name, c.scores))} of {c.scores.numel()}" for c in candidates]
    return ", ".join(shown[:6]) + (", …" if len(shown) > 6 else "") if shown else "nothing may go"


def by_mean(scores: Tensor) -> Tensor:
    """Scores [units] in units of their mean, so that layers of other widths and scales can be compared.

    source: the default normaliser of Torch-Pruning (VainF/Torch-Pruning, pruner/importance.py).
    """
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


def by_rank(scores: Tensor) -> Tensor:
    """Scores [units] as places within their group, 0 to 1: one ranking then takes the same share of every group."""
    places = torch.empty_like(scores, dtype=torch.float64)
    places[torch.sort(scores, stable=True).indices] = torch.arange(scores.numel(), dtype=torch.float64)
    return (places + 0.5) / scores.numel()


def least_of(size: int, most: float) -> int:
    """Units that stay of ``size`` where no more than the share ``most`` may go: at least one."""
    return max(1, math.ceil(round(size * (1.0 - most), 9)))
