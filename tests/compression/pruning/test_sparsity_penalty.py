"""Penalties against their closed forms: derivatives in the gradient, proximal maps on the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forgepress.compression import Chain
from forgepress.compression.pruning.sparsity_penalty import SparsityPenalty, group_factor, soft_threshold
from forgepress.errors import NoOpError
from forgepress.tests.compression.loops import chain_of, one_step, parameters, training
from torch import Tensor, nn

LR, STRENGTH = 0.5, 0.6  # the proximal maps work with their product, 0.3


def weights() -> dict[str, nn.Parameter]:
    return parameters(fc__weight=(4, 6), fc__bias=(4,), conv__weight=(3, 2, 2, 2))


def norms(x: Tensor, kept: int) -> Tensor:
    return x.square().sum(dim=[d for d in range(x.ndim) if d != kept], keepdim=True).sqrt()


PROXIMAL: dict[str, Any] = {
    "l1": lambda w: w.sign() * (w.abs() - 0.3).clamp_min(0),
    "l2": lambda w: w / 1.3,
    "elastic": lambda w: w.sign() * (w.abs() - 0.3 * 0.25).clamp_min(0) / (1 + 0.3 * 0.75),
}
DERIVATIVES: dict[str, Any] = {
    "l1": lambda w: 0.6 * w.sign(),
    "l2": lambda w: 0.6 * w,
    "elastic": lambda w: 0.6 * (0.25 * w.sign() + 0.75 * w),
}


def after(technique: SparsityPenalty) -> tuple[dict[str, nn.Parameter], Chain]:
    held = weights()
    chain = chain_of(held, technique, steps=1)
    one_step(chain, held, LR, [torch.ones_like(p) for p in held.values()])
    return held, chain


@pytest.mark.parametrize("kind", PROXIMAL)
def test_the_proximal_form_applies_the_closed_map_and_leaves_gradients_alone(kind: Any) -> None:
    held, _ = after(SparsityPenalty(kind=kind, strength=STRENGTH, mix=0.25))
    for name, before in weights().items():
        wanted = before.detach() if name == "fc.bias" else PROXIMAL[kind](before.detach())
        torch.testing.assert_close(held[name].detach(), wanted)
        assert held[name].grad is not None and (held[name].grad == 1).all()


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_the_gradient_form_adds_the_derivative_and_leaves_weights_alone(kind: Any) -> None:
    held, _ = after(SparsityPenalty(kind=kind, strength=STRENGTH, mix=0.25, form="gradient"))
    for name, before in weights().items():
        wanted = torch.zeros(()) if name == "fc.bias" else DERIVATIVES[kind](before.detach())
        grad = held[name].grad
        assert grad is not None
        torch.testing.assert_close(grad - 1, wanted.expand_as(grad), rtol=1e-5, atol=1e-6)
        assert torch.equal(held[name], before)


@pytest.mark.parametrize(("groups", "kept"), [("rows", 0), ("columns", 1)])
def test_group_lasso_shrinks_whole_rows_or_columns_by_their_norm(groups: Any, kept: int) -> None:
    held, _ = after(SparsityPenalty(kind="group", strength=STRENGTH, groups=groups))
    for name in ("fc.weight", "conv.weight"):
        before = weights()[name].detach()
        size = before.numel() // before.shape[kept]
        norm = norms(before, kept)
        wanted = before * (1 - 0.3 * size**0.5 / norm).clamp_min(0)
        torch.testing.assert_close(held[name].detach(), wanted)
        assert torch.equal(norms(held[name].detach(), kept) == 0, norm <= 0.3 * size**0.5)


@pytest.mark.parametrize(("groups", "kept"), [("rows", 0), ("columns", 1)])
def test_group_lasso_as_a_gradient_is_the_derivative_of_the_penalty(groups: Any, kept: int) -> None:
    held, _ = after(SparsityPenalty(kind="group", strength=STRENGTH, groups=groups, form="gradient"))
    for name in ("fc.weight", "conv.weight"):
        before = weights()[name]
        size = before.numel() // before.shape[kept]
        (STRENGTH * size**0.5 * norms(before, kept).sum()).backward()
        grad = held[name].grad
        assert grad is not None and before.grad is not None
        torch.testing.assert_close(grad - 1, before.grad, rtol=1e-5, atol=1e-5)


def test_a_group_of_zeros_has_a_finite_derivative() -> None:
    held = {"w": nn.Parameter(torch.zeros(3, 2))}
    chain = chain_of(held, SparsityPenalty(kind="group", form="gradient"), steps=1)
    one_step(chain, held, LR)
    assert held["w"].grad is not None and torch.isfinite(held["w"].grad).all()


def test_the_maps_stop_exactly_at_zero() -> None:
    x = torch.tensor([-2.0, -0.3, -0.1, 0.0, 0.3, 1.0])
    torch.testing.assert_close(soft_threshold(x, 0.3), torch.tensor([-1.7, 0.0, 0.0, 0.0, 0.0, 0.7]))
    factors = group_factor(torch.tensor([0.0, 0.3, 0.6]), 0.3)
    assert factors.tolist() == pytest.approx([0.0, 0.0, 0.5])


def test_the_proximal_form_delivers_exact_zeros_that_later_phases_keep_and_the_others_none() -> None:
    held = weights()
    chain = chain_of(held, SparsityPenalty(kind="l1", strength=3.0), steps=5)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 5))
    assert (held["fc.weight"] == 0).sum() > 5
    model = nn.Sequential(nn.Linear(3, 2))
    records = {
        (kind, form): SparsityPenalty(kind=kind, form=form).finalize(model, {})["zeros"]
        for kind in ("l1", "l2", "group")
        for form in ("proximal", "gradient")
    }
    assert [key for key, zeros in records.items() if zeros] == [("l1", "proximal"), ("group", "proximal")]


def test_a_penalty_that_finds_no_weight_is_a_no_op_and_said_so() -> None:
    held = weights()
    chain = chain_of(held, SparsityPenalty(match="attention.*"), steps=1)
    one_step(chain, held, LR)
    with pytest.raises(NoOpError, match=r"pruning\.sparsity_penalty requested penalty at work 1"):
        chain.demand()


@pytest.mark.parametrize(
    ("settings", "message"), [({"strength": 0.0}, "strength=0.0"), ({"mix": 1.5}, "mix=1.5: want 0")]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparsityPenalty(**settings)
