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
QAT, PTQ, KEEP = "quantization.aware_training", "quantization.post_training", "pruning.keep_zeros"
REMOVAL, SLIMMING = "pruning.structured", "pruning.network_slimming"
PROXIMAL, GRADIENT = "pruning.sparsity_penalty:proximal", "pruning.sparsity_penalty:gradient"


@pytest.mark.parametrize(
    "phases",
    [
        [[(PROXIMAL, BOTH), (SURGERY, BOTH)]],
        [[(SURGERY, BOTH), (GRADIENT, BOTH)]],
        [[(MAGNITUDE, FC1), (SURGERY, FC2)]],
        [[(MAGNITUDE, BOTH)], [(SURGERY, BOTH)]],
        [[(PROXIMAL, BOTH), (MAGNITUDE, BOTH)], []],
        [[(SURGERY, BOTH), (QAT, BOTH)]],
        [[(SLIMMING, FC1)], [(KEEP, BOTH), (MAGNITUDE, BOTH)], [(QAT, BOTH)]],
        [[(PTQ, BOTH)], [(QAT, BOTH)]],
        [[(QAT, FC1)], [(MAGNITUDE, FC2), (GRADIENT, FC1)]],
        [[(QAT, FC1), (MAGNITUDE, FC2)]],
    ],
)
def test_what_goes_together_is_not_refused(phases: list[list[tuple[str, frozenset[str]]]]) -> None:
    assert told(*phases) == []


@pytest.mark.parametrize(
    ("phases", "place", "words"),
    [
        ([[(MAGNITUDE, BOTH), (SURGERY, FC1)]], (0, 1), "would both decide the zeros of fc1.weight"),
        ([[], [(SURGERY, BOTH), (PROXIMAL, FC2)]], (1, 1), "put pruning.sparsity_penalty before"),
        ([[(QAT, BOTH), (MAGNITUDE, FC2)]], (0, 1), "has already written working values"),
        (
            [[(QAT, BOTH), (SURGERY, FC2)]],
            (0, 1),
            "among values that quantization.aware_training has rounded",
        ),
        ([[(REMOVAL, BOTH), (QAT, BOTH)]], (0, 1), "quantize in a later phase"),
        ([[(REMOVAL, BOTH), (SLIMMING, FC1)]], (0, 1), "would both decide the shapes"),
        ([[(QAT, BOTH)], [(MAGNITUDE, FC1)]], (1, 0), "prune before that"),
        ([[(QAT, FC1)], [], [(REMOVAL, FC2)]], (2, 0), "remove first"),
        ([[(PTQ, FC1), (GRADIENT, FC2)]], (0, 0), "give it a phase of its own"),
    ],
)
def test_what_would_be_a_silent_no_op_is_refused_at_its_place(
    phases: list[list[tuple[str, frozenset[str]]]], place: tuple[int, int], words: str
) -> None:
    [(phase, technique, message)] = told(*phases)
    assert (phase, technique) == place
    assert words in message
