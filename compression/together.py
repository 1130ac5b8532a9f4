"""Which techniques go together, in one list and in successive phases; what cannot work is refused at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .registry import name_of
from .technique import Technique

Phase = Sequence[tuple[Technique, frozenset[str]]]
"""The techniques of one phase in list order, each with the names of the parameters that it touches."""


@dataclass(frozen=True)
class Refusal:
    """A technique that cannot stand where it stands: place in the config, and why, with what to do."""

    phase: int
    technique: int
    message: str


def refusals(phases: Sequence[Phase]) -> list[Refusal]:
    """Everything in the order of ``phases`` that would be a silent no-op or undo what came before; [] = all fine."""
    found: list[Refusal] = []
    for number, phase in enumerate(phases):
        for place in range(len(phase)):
            for why in (*_within(phase, place), *_after(phases[:number], phase[place])):
                found.append(Refusal(number, place, why))
    return found


def _within(phase: Phase, place: int) -> Iterator[str]:
    technique, names = phase[place]
    traits, name = technique.traits(), name_of(type(technique))
    if technique.trains is False and any(other.trains for other, _ in phase):
        yield f"{name} only looks while nothing moves, but its phase also trains; give it a phase of its own"
    for before, touched in phase[:place]:
        shared = sorted(names & touched)
        if not shared:
            continue
        earlier, other = before.traits(), name_of(type(before))
        where = f"{shared[0]}" + (f" and {len(shared) - 1} more" if len(shared) > 1 else "")
        if traits.gives and traits.gives == earlier.gives and traits.owns and earlier.owns:
            yield (
                f"{name} and {other} would both decide the {traits.gives} of {where}; leave one out, or give each "
                "its own parameters with match"
            )
        elif {traits.gives, earlier.gives} == {"shapes", "grid"}:
            yield (
                f"{name} and {other} cannot share a phase: one changes the shapes whose scales the other learns; "
                "remove first, and quantize in a later phase"
            )
        elif earlier.writes == "working" and traits.writes == "dense":
            yield (
                f"{name} moves the dense weights of {where}, but {other} before it has already written working "
                f"values over them, so nothing would come of it; put {name} before {other}"
            )
        elif earlier.gives == "grid" and traits.gives == "zeros":
            yield (
                f"{name} would choose its zeros of {where} among values that {other} has rounded; put {name} "
                f"before {other}"
            )


def _after(earlier: Sequence[Phase], here: tuple[Technique, frozenset[str]]) -> Iterator[str]:
    technique, names = here
    traits, name = technique.traits(), name_of(type(technique))
    for phase in earlier:
        for before, touched in phase:
            if before.traits().gives != "grid":
                continue
            other = name_of(type(before))
            if traits.gives == "shapes":
                yield (
                    f"{name} would remove what {other} of an earlier phase has quantized; remove first, and "
                    "quantize afterwards"
                )
            elif traits.gives == "zeros" and traits.owns and names & touched:
                yield (
                    f"{name} would prune what {other} of an earlier phase has put on a grid; prune before that, or "
                    "in the same phase before it in the list"
                )
