"""The plan: what phases did to the model's shape, as JSON, done again on a fresh model before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from torch import nn

from .registry import build, name_of
from .technique import Record, Technique

PlanEntry = dict[str, Any]
"""One finalized technique: ``{"phase", "technique", "settings", "record"}``."""


def entry(phase: str, technique: Technique, record: Record) -> PlanEntry:
    """The plan's line for one finalized technique."""
    return {
        "phase": phase,
        "technique": name_of(type(technique)),
        "settings": technique.settings(),
        "record": record,
    }


def replay(model: nn.Module, plan: Sequence[PlanEntry]) -> None:
    """Bring a freshly built ``model`` into the shape it had after the phases in ``plan``.

    In the order of the run: all techniques of a phase prepare before the first of them finalizes.
    """
    for _, lines in groupby(plan, key=lambda line: line["phase"]):
        phase = [(build(line["technique"], line["settings"]), line["record"]) for line in lines]
        for technique, _ in phase:
            technique.prepare(model)
        for technique, record in phase:
            technique.rebuild(model, record)


def kept_grids(plan: Sequence[PlanEntry]) -> list[str]:
    """Names of parameters that a phase has put on grids, which all that comes after must keep."""
    names = {name: None for line in plan for name in line["record"].get("grids", [])}
    return list(names)


def kept_zeros(plan: Sequence[PlanEntry]) -> list[str]:
    """Names of parameters whose zeros a phase delivered, which all that comes after must keep."""
    names = {name: None for line in plan for name in line["record"].get("zeros", [])}
    return list(names)
