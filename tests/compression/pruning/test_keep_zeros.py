"""Zeros that a phase begins with stay, whatever pulls at them."""

from __future__ import annotations

import pytest
import torch
from forgepress.compression.pruning.keep_zeros import KeepZeros
from forgepress.errors import NoOpError
from forgepress.tests.compression.loops import chain_of, parameters, training
from torch import nn


def pruned() -> dict[str, nn.Parameter]:
    held = parameters(w=(6, 5), bias=(6,))
    with torch.no_grad():
        held["w"].mul_(held["w"].abs() > 0.6)
        held["bias"][::2] = 0.0
    return held


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_zeros_hold_and_no_others_appear(name: str) -> None:
    held = pruned()
    before = (held["w"] == 0).clone()
    optimizer = (
        torch.optim.SGD(held.values(), lr=0.1, momentum=0.9, weight_decay=0.1)
        if name == "sgd"
        else torch.optim.AdamW(held.values(), lr=0.1, weight_decay=0.1)
    )
    chain = chain_of(held, KeepZeros(), steps=6)
    for _ in training(chain, held, optimizer, 6):
        assert torch.equal(held["w"] == 0, before)
        chain.demand()
    assert before.any() and (held["bias"] != 0).all()  # no bias was asked for


def test_a_lost_zero_is_found() -> None:
    held = pruned()
    chain = chain_of(held, KeepZeros(match=("w", "bias")), steps=6)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 2))
    with torch.no_grad():
        held["bias"][0] = 1.0
    with pytest.raises(NoOpError, match=r"pruning\.keep_zeros requested sparsity"):
        chain.demand()


def test_only_what_was_zero_at_the_beginning_counts() -> None:
    held = pruned()
    chain = chain_of(held, KeepZeros(), steps=6)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 2))
    nonzero = (held["w"] != 0).nonzero()[0]
    with torch.no_grad():
        held["w"][tuple(nonzero)] = 0.0  # becomes zero by itself in mid-phase
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 1, first=3))
    assert held["w"][tuple(nonzero)] != 0
