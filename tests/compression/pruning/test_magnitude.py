"""Magnitude pruning: the smallest go, along the ramp, and what is zero stays zero under every optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forgepress.compression.pruning.magnitude import Magnitude
from forgepress.errors import ConfigError, NoOpError
from forgepress.tests.compression.loops import chain_of, parameters, training, zeros
from torch import nn

SHAPES: dict[str, tuple[int, ...]] = {
    "fc1__weight": (7, 5),
    "fc1__bias": (7,),
    "fc2__weight": (3, 7),
}  # 56 weights
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.05),
}


def one_shot(**settings: Any) -> Magnitude:
    return Magnitude(ramp="one_shot", begin=2, **settings)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_hold_under_momentum_decay_and_adam(optimizer: str) -> None:
    held = parameters(**SHAPES)
    chain = chain_of(held, one_shot(sparsity=0.5), steps=12)
    pruned: dict[str, torch.Tensor] = {}
    for step in training(chain, held, OPTIMIZERS[optimizer](held.values()), 12):
        if step == 2:
            pruned = {name: p.detach() == 0 for name, p in held.items()}
        for name, where in pruned.items():
            assert torch.equal(held[name] == 0, where)
    assert sum(int(where.sum()) for where in pruned.values()) == 28
    assert not pruned["fc1.bias"].any()
    chain.demand()


def test_masked_gradients_take_no_part_in_the_step() -> None:
    held = parameters(**SHAPES)
    chain = chain_of(held, one_shot(sparsity=0.5), steps=4)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 4))
    for name in ("fc1.weight", "fc2.weight"):
        grad = held[name].grad
        assert grad is not None and torch.equal(grad == 0, held[name] == 0)


def test_the_ramp_prunes_exactly_the_smallest_of_all_weights_and_none_comes_back() -> None:
    held = parameters(**SHAPES)
    chain = chain_of(held, Magnitude(sparsity=0.8, begin=2, end=10, every=4), steps=12)
    counts, before = [], torch.zeros(56, dtype=torch.bool)
    for _ in training(chain, held, torch.optim.SGD(held.values(), lr=0.0), 12):
        flat = torch.cat([held["fc1.weight"].detach().flatten(), held["fc2.weight"].detach().flatten()])
        assert not (before & (flat != 0)).any()
        before = flat == 0
        counts.append(int(before.sum()))
    # cubic at progress 0, 1/2 and 1: 0, round(56 · 0.8 · 7/8) and round(56 · 0.8)
    assert counts == [0, 0, 0, 0, 0, 39, 39, 39, 39, 45, 45, 45]
    start = parameters(**SHAPES)  # nothing moved: the pruned are the 45 smallest there were
    flat = torch.cat([start["fc1.weight"].flatten(), start["fc2.weight"].flatten()]).detach().abs()
    assert torch.equal(before, flat <= flat.kthvalue(45).values)


def test_uniform_takes_the_same_share_of_each_parameter() -> None:
    held = parameters(**SHAPES)
    chain = chain_of(held, one_shot(sparsity=0.4, scope="uniform"), steps=2)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 2))
    assert [zeros(held, name) for name in ("fc1.weight", "fc2.weight")] == [
        14,
        8,
    ]  # round(0.4 · 35), round(0.4 · 21)
    chain.demand()


def test_per_layer_takes_the_share_of_each_glob_and_leaves_the_rest() -> None:
    held = parameters(**SHAPES)
    shares = {"fc1.*": 0.5, "fc2.weight": 0.2}
    chain = chain_of(held, one_shot(sparsity=shares, scope="per_layer"), steps=2)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 2))
    assert zeros(held, "fc1.weight", "fc1.bias") == 21 and zeros(held, "fc2.weight") == 4
    assert len(next(iter(chain.demand().values()))) == 2


def test_equal_magnitudes_at_the_threshold_go_together() -> None:
    held = {"w": nn.Parameter(torch.tensor([[1.0, -1.0, 1.0, 2.0, -2.0]]))}
    chain = chain_of(held, one_shot(sparsity=0.2), steps=2)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.0), 2))
    assert held["w"].tolist() == [[0.0, 0.0, 0.0, 2.0, -2.0]]


def test_the_share_is_of_all_weights_also_of_those_that_were_zero_before() -> None:
    held = {"w": nn.Parameter(torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0]]))}
    chain = chain_of(held, one_shot(sparsity=0.6), steps=2)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.0), 2))
    assert held["w"].tolist() == [[0.0, 0.0, 0.0, 2.0, 3.0]]


def test_a_zero_that_is_lost_is_found_and_named() -> None:
    held = parameters(**SHAPES)
    chain = chain_of(held, one_shot(sparsity=0.5), steps=4)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 3))
    with torch.no_grad():
        held["fc2.weight"].add_(0.1)
    with pytest.raises(NoOpError, match=r"technique 0.pruning.magnitude requested sparsity 0.5 but"):
        chain.demand()


def test_a_phase_without_a_step_cannot_have_pruned() -> None:
    chain = chain_of(parameters(**SHAPES), Magnitude(sparsity=0.5), steps=0)
    with pytest.raises(NoOpError, match=r"requested sparsity 0.5 but the model has 0"):
        chain.demand()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end": 11}, r"pruning.magnitude.end=11: given a point after the phase's last step, 10"),
        ({"ramp": "one_shot", "begin": 11, "end": 3}, r"pruning.magnitude.begin=11: given a point after"),
        ({"begin": 0.9, "end": 0.5}, r"pruning.magnitude.begin=0.9 lies after end=0.5"),
    ],
)
def test_a_ramp_that_the_phase_cannot_hold_is_refused_at_its_first_step(
    settings: dict[str, Any], message: str
) -> None:
    chain = chain_of(parameters(**SHAPES), Magnitude(sparsity=0.5, **settings), steps=10)
    with pytest.raises(ConfigError, match=message):
        chain.before_step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0: want a share from 0 to below 1"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": {"a": 0.5, "b": 1.5}, "scope": "per_layer"}, "sparsity=1.5"),
        ({"sparsity": {"a": 0.5}}, "a mapping of globs goes with per_layer"),
        ({"sparsity": 0.5, "scope": "per_layer"}, "a mapping of globs goes with per_layer"),
        ({"every": 0}, "every=0: want 1 step or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Magnitude(**settings)
