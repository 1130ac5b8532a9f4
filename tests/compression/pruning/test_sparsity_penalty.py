"""Penalties against their closed forms: derivatives in the gradient, proximal maps on the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forgepress.compression import Chain, Run, weights_of
from forgepress.compression.pruning._groups import group_factor, soft_threshold
from forgepress.compression.pruning.sparsity_penalty import SparsityPenalty
from forgepress.errors import ConfigError, NoOpError
from forgepress.tests.compression.loops import chain_of, one_step, parameters, training
from forgepress.tests.ranks import run_on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

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


# ── blocks of rows or columns: heads


def blocks(x: Tensor, dim: int, size: int) -> Tensor:
    """Norm of each block of `size` entries along `dim`, for every entry again."""
    others = [d for d in range(x.ndim) if d != dim]
    square = x.square().sum(dim=others) if others else x.square()
    norm = square.unflatten(0, (-1, size)).sum(dim=1).sqrt().repeat_interleave(size)
    return norm.reshape([-1 if d == dim else 1 for d in range(x.ndim)])


@pytest.mark.parametrize(("groups", "dim"), [("rows", 0), ("columns", 1)])
def test_heads_shrink_and_vanish_as_one_group(groups: Any, dim: int) -> None:
    held = parameters(query__weight=(6, 6))
    technique = SparsityPenalty(kind="group", strength=STRENGTH, groups=groups, group_size=3)
    one_step(chain_of(held, technique, steps=1), held, LR)
    before = parameters(query__weight=(6, 6))["query.weight"].detach()
    wanted = before * (1 - 0.3 * 18**0.5 / blocks(before, dim, 3)).clamp_min(0)
    torch.testing.assert_close(held["query.weight"].detach(), wanted)
    strong = SparsityPenalty(kind="group", strength=2.6, groups=groups, group_size=3)
    one_step(chain_of(held, strong, steps=1), held, LR)
    alive = blocks(held["query.weight"].detach(), dim, 3) > 0
    gone = blocks(wanted, dim, 3) <= 1.3 * 18**0.5
    assert torch.equal(~alive, gone) and gone.any()


def shrunk_heads(dim: int | None, groups: Any) -> Tensor:
    dense = torch.randn(10, 14, generator=torch.Generator().manual_seed(3))
    parameter, reduce = nn.Parameter(dense.clone()), None
    if dim is not None:
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),), mesh_dim_names=("shard",))
        parameter = nn.Parameter(distribute_tensor(dense, mesh, [Shard(dim)]))
        reduce = _sum
    size = 5 if groups == "rows" else 7
    technique = SparsityPenalty(kind="group", strength=STRENGTH, groups=groups, group_size=size)
    chain = Chain([technique], Run(weights_of({"query.weight": parameter}), steps=1, reduce=reduce))
    chain.before_step(LR)
    chain.after_step()
    return parameter.detach() if dim is None else parameter.full_tensor().detach()  # pyright: ignore[reportAttributeAccessIssue]


def _sum(x: Tensor, operation: str) -> Tensor:
    torch.distributed.all_reduce(x)
    return x


@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("dim", [0, 1])
def test_three_ranks_that_cut_heads_in_the_middle_shrink_them_as_one_process_does(
    dim: int, groups: Any
) -> None:
    alone = shrunk_heads(None, groups)
    for whole in run_on_ranks(shrunk_heads, dim, groups, ranks=3):
        torch.testing.assert_close(whole, alone)


def test_a_head_size_that_does_not_divide_is_refused_by_name() -> None:
    held = parameters(query__weight=(6, 4))
    chain = chain_of(held, SparsityPenalty(kind="group", group_size=4), steps=1)
    with pytest.raises(ConfigError, match=r"group_size=4: query\.weight has 6 entries along dim 0"):
        one_step(chain, held, LR)


# ── strength over the phase


@pytest.mark.parametrize(
    ("ramp", "shares"),
    [
        ("constant", [1.0] * 5),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0]),
        ("cubic", [37 / 64, 7 / 8, 63 / 64, 1.0, 1.0]),
        ("cosine", [(1 - 2**-0.5) / 2, 0.5, (1 + 2**-0.5) / 2, 1.0, 1.0]),
    ],
)
@pytest.mark.parametrize("end", [4, 0.4])
def test_the_strength_follows_its_ramp_in_both_forms(ramp: Any, shares: list[float], end: Any) -> None:
    for form in ("gradient", "proximal"):
        held = {"w": nn.Parameter(torch.full((1, 1), 8.0))}
        chain = chain_of(held, SparsityPenalty(strength=0.5, ramp=ramp, end=end, form=form), steps=10)
        pulls = []
        for _ in range(5):
            before = held["w"].item()
            one_step(chain, held, lr=1.0)
            grad = held["w"].grad
            assert grad is not None
            pulls.append(grad.item() if form == "gradient" else before - held["w"].item())
        assert pulls == pytest.approx([0.5 * share for share in shares], rel=1e-4)


def test_a_ramp_that_the_phase_is_too_short_for_is_refused() -> None:
    held = weights()
    chain = chain_of(held, SparsityPenalty(ramp="linear", end=11), steps=10)
    with pytest.raises(ConfigError, match=r"pruning\.sparsity_penalty\.end=11: given a point after"):
        chain.before_step()


# ── on scales and on activations


class Llama(nn.Module):
    """A normalisation layer of another library: only its name and its vector say what it is."""

    class OwnRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.batch_norm = nn.BatchNorm1d(5)
        self.relu = nn.ReLU()
        self.own = self.OwnRMSNorm()
        self.plain = nn.LayerNorm(5, elementwise_affine=False)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.plain(self.own(self.relu(self.batch_norm(self.first(x))))))


def chain_on(model: nn.Module, technique: SparsityPenalty, steps: int = 4) -> Chain:
    run = Run(weights_of(dict(model.named_parameters())), steps=steps, modules=dict(model.named_modules()))
    chain = Chain([technique], run)
    chain.set_up()
    return chain


def test_scales_are_the_vectors_of_all_normalisation_layers_and_nothing_else() -> None:
    torch.manual_seed(0)
    model, technique = Llama(), SparsityPenalty(match="scales", strength=STRENGTH)
    assert technique.matched(model) == ["batch_norm.weight", "own.weight"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    chain = chain_on(model, technique)
    one_step(chain, dict(model.named_parameters()), LR)
    for name, parameter in model.named_parameters():
        wanted = before[name] - 0.3 if name in ("batch_norm.weight", "own.weight") else before[name]
        torch.testing.assert_close(parameter.detach(), wanted)
    assert technique.finalize(model, {})["zeros"] == ["batch_norm.weight", "own.weight"]


@pytest.mark.parametrize(("kind", "l1", "l2"), [("l1", 1, 0), ("l2", 0, 1), ("elastic", 0.25, 0.75)])
def test_on_activations_micro_batches_add_up_to_the_gradient_of_the_penalty_in_the_loss(
    kind: Any, l1: float, l2: float
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, wanted = torch.randn(7, 4), []
    hidden = model[1](model[0](x))
    penalty = (l1 * hidden.abs() + 0.5 * l2 * hidden.square()).sum() / 7
    (model[2](hidden).square().sum() / 7 + STRENGTH * penalty).backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    technique = SparsityPenalty(
        kind=kind, strength=STRENGTH, mix=0.25, form="gradient", target="activations", match="1"
    )
    chain = chain_on(model, technique)
    chain.run.items = 7.0
    chain.before_step(LR)
    for part in x.split([4, 3]):
        (model(part).square().sum() / 7).backward()
    chain.after_backward()
    for parameter, grad in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    torch.testing.assert_close(chain.run.attached["activation_penalty"], (STRENGTH * penalty).detach())
    chain.demand()
    model(x)  # an evaluation between two steps
    torch.testing.assert_close(chain.run.attached["activation_penalty"], (STRENGTH * penalty).detach())


def test_rows_that_only_fill_up_a_micro_batch_are_not_penalised() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Identity())
    technique = SparsityPenalty(form="gradient", target="activations", match="1")
    chain = chain_on(model, technique)
    chain.run.now.valid = torch.tensor([True, False])
    chain.before_step(LR)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    (model(x) * 0).sum().backward()
    grad = model[0].weight.grad
    assert isinstance(grad, Tensor) and (grad[:, 0] != 0).all() and (grad[:, 1] == 0).all()


def test_a_module_that_never_runs_is_a_no_op_and_said_so() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    chain = chain_on(model, SparsityPenalty(form="gradient", target="activations", match="1"))
    chain.before_step(LR)
    model[0](torch.ones(1, 2)).sum().backward()
    chain.after_backward()
    with pytest.raises(NoOpError, match="requested penalty at work 1 but the model has 0"):
        chain.demand()


def test_a_module_that_gives_more_than_a_tensor_is_refused_by_name() -> None:
    model = nn.Sequential(nn.LSTM(2, 3))
    chain = chain_on(model, SparsityPenalty(form="gradient", target="activations", match="0"))
    chain.before_step(LR)
    with pytest.raises(ConfigError, match="module 0 gives a tuple; want modules that give one tensor"):
        model(torch.ones(1, 4, 2))


ACTIVATIONS: dict[str, Any] = {"target": "activations", "form": "gradient", "match": "relu*"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.0}, "strength=0.0"),
        ({"mix": 1.5}, "mix=1.5: want 0"),
        ({"group_size": 0}, "group_size=0: want 1"),
        (ACTIVATIONS | {"form": "proximal"}, "form='proximal' with target='activations'"),
        (ACTIVATIONS | {"kind": "group"}, "kind='group' with target='activations'"),
        (ACTIVATIONS | {"match": "weights"}, "want globs over module names"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparsityPenalty(**settings)
