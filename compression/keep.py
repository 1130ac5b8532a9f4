"""What a phase must leave as it is: the techniques that keep what earlier phases have delivered."""

from __future__ import annotations

from collections.abc import Sequence

from .matching import matching_names
from .pruning.keep_zeros import KeepZeros
from .quantization.keep_grid import KeepGrid
from .replay import PlanEntry, kept_grids, kept_zeros
from .technique import Technique


def between_keepers(asked: Sequence[Technique], plan: Sequence[PlanEntry]) -> list[Technique]:
    """The techniques of a phase in list order, between those that keep the zeros and the grids of earlier phases.

    Zeros first, so that the others see them; grids last, so that nothing leaves them. A weight that the phase puts
    on a new grid is not kept on the old one.
    """
    zeros = kept_zeros(plan)
    keep: list[Technique] = [KeepZeros(match=tuple(zeros))] if zeros else []
    grids = dict.fromkeys(kept_grids(plan), (1, 1))  # weights have two or more dims; which does not matter
    for technique in asked:
        for name in matching_names(grids, technique.match) if technique.traits().gives == "grid" else ():
            del grids[name]
    return [*keep, *asked, *([KeepGrid(match=tuple(grids))] if grids else [])]
