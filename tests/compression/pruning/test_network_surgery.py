"""Network surgery against a plain single-tensor implementation of the paper, and what the target share adds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from forgepress.compression import Chain, Run
from forgepress.compression.fused import splice_
from forgepress.compression.pruning.network_surgery import NetworkSurgery
from forgepress.errors import ConfigError
from forgepress.tests.compression.loops import chain_of, gradient, parameters, training, zeros
from torch import Tensor

STEPS, STOP, LR = 40, 30, 0.2
SHAPES: dict[str, tuple[int, ...]] = {"fc1__weight": (9, 7), "fc1__bias": (9,), "fc2__weight": (4, 9)}


class Paper:
    """Guo et al. 2016 for one tensor, written down once more: W, T, a_k, b_k, sigma(iter)."""

    def __init__(self, weight: Tensor, rate: float, gamma: float, power: float) -> None:
        self.dense, self.mask = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
        self.rate, self.gamma, self.power = rate, gamma, power
        self.low = self.high = -1.0
        self.operated: list[int] = []
        self.returned = 0

    def step(self, number: int, draw: float) -> None:
        frozen = number > STOP
        working = self.dense * self.mask
        step = gradient(working, number)
        self.dense = working - LR * step * self.mask if frozen else self.dense - LR * step
        if number == 1:
            size = self.dense.abs().double()
            middle = max(float(size.mean() + self.rate * size.std(unbiased=False)), 0.0)
            self.low, self.high = 0.9 * middle, 1.1 * middle
        if number < STOP and draw < (1 + self.gamma * (number - 1)) ** -self.power:
            self.operated.append(number)
            before = self.mask.clone()
            self.mask[self.dense.abs() <= self.low] = False
            self.mask[self.dense.abs() > self.high] = True
            self.returned += int((self.mask & ~before).sum())

    @property
    def working(self) -> Tensor:
        return self.dense * self.mask


def draws(name: str, steps: int) -> list[float]:
    """The technique's own random numbers: whether they are used as the paper says is what is tested."""
    run = Run([], steps=steps, seed=5)
    run.scope, numbers = "0.pruning.network_surgery", []
    for run.step in range(1, steps + 1):
        numbers.append(run.uniform(name))
    return numbers


@pytest.mark.parametrize(("rate", "gamma", "power"), [(0.3, 0.0, 1.0), (0.3, 0.5, 1.0), (-0.2, 0.1, 2.0)])
def test_the_paper_s_form_is_the_paper_s_algorithm(rate: float, gamma: float, power: float) -> None:
    held = parameters(w=(12, 11))
    technique = NetworkSurgery(rate=rate, gamma=gamma, power=power, stop=STOP)
    chain = chain_of(held, technique, steps=STEPS, seed=5)
    paper = Paper(held["w"].detach(), rate, gamma, power)
    random = draws("w", STEPS)
    for step in training(chain, held, torch.optim.SGD(held.values(), lr=LR), STEPS):
        paper.step(step, random[step - 1])
        torch.testing.assert_close(held["w"].detach(), paper.working, rtol=1e-5, atol=1e-6)
        assert torch.equal(held["w"] == 0, paper.working == 0)
        chain.demand()
    assert paper.returned > 0  # splicing: weights that were pruned have come back
    assert 0 < zeros(held) < 132
    if gamma == 0.0:
        assert paper.operated == list(range(1, STOP))


def test_masks_are_renewed_ever_less_often() -> None:
    """With gamma = power = 1 the probability at step n is 1/n: ln(n) renewals, more of them early than late."""
    steps = 4000
    renewed = [n for n, draw in enumerate(draws("w", steps), start=1) if draw < (1.0 + 1.0 * (n - 1)) ** -1.0]
    expected = sum(1 / n for n in range(1, steps + 1))
    assert abs(len(renewed) - expected) < 4 * math.sqrt(expected)
    held = parameters(w=(6, 5))
    chain = chain_of(held, NetworkSurgery(rate=0.0, gamma=1.0, stop=60), steps=60, seed=5)
    before, changed = torch.ones(6, 5, dtype=torch.bool), []
    for step in training(chain, held, torch.optim.SGD(held.values(), lr=LR), 59):
        mask = chain.run.buffers["0.pruning.network_surgery", "mask"]["w"]
        if not torch.equal(mask, before):
            changed.append(step)
        before = mask.clone()
    assert 1 in changed and set(changed) <= {n for n in renewed if n < 60}


def target(**settings: Any) -> tuple[dict[str, Any], Chain]:
    held = parameters(**SHAPES)
    technique = NetworkSurgery(sparsity=0.7, every=2, stop=STOP, **settings)
    return held, chain_of(held, technique, steps=STEPS, seed=5)


@pytest.mark.parametrize(
    ("scope", "counts"), [("global", None), ("layer", [44, 25])]
)  # 0.7 · 63 and 0.7 · 36
def test_the_share_is_met_when_the_mask_freezes_and_held_after(scope: str, counts: list[int] | None) -> None:
    held, chain = target(scope=scope)
    frozen: dict[str, Tensor] = {}
    for step in training(chain, held, torch.optim.Adam(held.values(), lr=0.05, weight_decay=0.1), STEPS):
        if step == STOP:
            frozen = {name: p.detach() == 0 for name, p in held.items()}
            here = [zeros(held, "fc1.weight"), zeros(held, "fc2.weight")]
            assert sum(here) >= 69 and (
                counts is None or all(a >= b for a, b in zip(here, counts, strict=True))
            )
        for name, where in frozen.items():
            assert torch.equal(held[name] == 0, where)
        chain.demand()
    assert zeros(held, "fc1.bias") == 0


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
def test_the_freeze_only_prunes_or_only_returns_whatever_is_needed_for_the_share(margin: float) -> None:
    held, chain = target(margin=margin)
    masks: dict[int, Tensor] = {}
    for step in training(chain, held, torch.optim.SGD(held.values(), lr=LR), STEPS):
        masks[step] = torch.cat([held[n].detach().flatten() != 0 for n in ("fc1.weight", "fc2.weight")])
    back, gone = masks[STOP] & ~masks[STOP - 1], masks[STOP - 1] & ~masks[STOP]
    assert not (back.any() and gone.any())
    assert int((~masks[STOP]).sum()) == 69


def test_zeros_grow_along_a_cubic_ramp_that_ends_at_two_thirds_of_stop() -> None:
    held, chain = target(margin=0.0)  # without a margin the mask is the quantile's own
    optimizer = torch.optim.SGD(held.values(), lr=0.0)  # nothing moves: the dense quantile is known
    counts = {}
    for step in training(chain, held, optimizer, STEPS):
        counts[step] = zeros(held, "fc1.weight", "fc2.weight")
    assert counts[1] == round(99 * 0.7 * (1 - (19 / 20) ** 3))
    assert counts[11] == counts[12] == round(99 * 0.7 * (1 - (9 / 20) ** 3))
    assert counts[21] == counts[STEPS] == 69


def test_splicing_prunes_at_or_below_the_lower_threshold_and_returns_above_the_upper_one() -> None:
    dense = torch.tensor([-0.9, 0.91, -1.0, 1.0, 1.1, -1.11])
    mask = torch.tensor([True, False, True, False, False, False])
    assert splice_(mask, dense, 0.9, 1.1).tolist() == [False, False, True, False, False, True]


def test_a_mask_that_would_never_freeze_is_refused_at_the_first_step() -> None:
    chain = chain_of(parameters(**SHAPES), NetworkSurgery(sparsity=0.5, stop=11), steps=10)
    with pytest.raises(ConfigError, match=r"pruning\.network_surgery\.stop=11: given a point after"):
        chain.before_step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of them"),
        ({"sparsity": 0.5, "rate": 1.0}, "exactly one of them"),
        ({"sparsity": 1.0}, "sparsity=1.0: want a share"),
        ({"rate": 1.0, "margin": 1.0}, "margin=1.0"),
        ({"rate": 1.0, "gamma": -1.0}, "gamma=-1.0"),
        ({"rate": 1.0, "every": 0}, "every=0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSurgery(**settings)
