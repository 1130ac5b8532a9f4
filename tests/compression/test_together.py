"""Lists and orders of techniques that would undo or ignore each other are refused, all others are not."""

from __future__ import annotations

import pytest
from forgepress.compression import Technique, build, refusals

FC1, FC2, BOTH = frozenset({"fc1.weight"}), frozenset({"fc2.weight"}), frozenset({"fc1.weight", "fc2.weight"})


def make(name: str) -> Technique:
    name, _, form = name.partition(":")
    settings = {"sparsity": 0.5} if name == "pruning.network_surgery" else {}
    return build(name, settings | ({"form": form} if form else {}))


def told(*phases: list[tuple[str, frozenset[str]]]) -> list[tuple[int, int, str]]:
    made = [[(make(name), touched) for name, touched in phase] for phase in phases]
    return [(r.phase, r.technique, r.message) for r in refusals(made)]


SURGERY, MAGNITUDE = "pruning.network_surgery", "pruning.magnitude"
PROXIMAL, GRADIENT = "pruning.sparsity_penalty:proximal", "pruning.sparsity_penalty:gradient"


@pytest.mark.parametrize(
    "phases",
    [
        [[(PROXIMAL, BOTH), (SURGERY, BOTH)]],
        [[(SURGERY, BOTH), (GRADIENT, BOTH)]],
        [[(MAGNITUDE, FC1), (SURGERY, FC2)]],
        [[(MAGNITUDE, BOTH)], [(SURGERY, BOTH)]],
        [[(PROXIMAL, BOTH), (MAGNITUDE, BOTH)], []],
    ],
)
def test_what_goes_together_is_not_refused(phases: list[list[tuple[str, frozenset[str]]]]) -> None:
    assert told(*phases) == []


@pytest.mark.parametrize(
    ("phases", "place", "words"),
    [
        ([[(MAGNITUDE, BOTH), (SURGERY, FC1)]], (0, 1), "would both decide the zeros of fc1.weight"),
        ([[], [(SURGERY, BOTH), (PROXIMAL, FC2)]], (1, 1), "put pruning.sparsity_penalty before"),
    ],
)
def test_what_would_be_a_silent_no_op_is_refused_at_its_place(
    phases: list[list[tuple[str, frozenset[str]]]], place: tuple[int, int], words: str
) -> None:
    [(phase, technique, message)] = told(*phases)
    assert (phase, technique) == place
    assert words in message
