"""Cutting by hand: what is refused, what the record says, what units cost."""

import copy
import json

import pytest
import torch
from forgepress.compression.structure import (
    Group,
    Member,
    allowed,
    cut,
    graph_macs,
    graph_parameters,
    macs,
    recut,
    trace,
    unit_cost,
)
from forgepress.errors import ConfigError
from torch import nn

from . import nets

ROWS = (torch.rand(3, 6, generator=torch.Generator().manual_seed(0)),)


def test_the_record_says_which_positions_stay_and_moments_can_follow():
    model = nets.mlp()
    moments = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    before = copy.deepcopy(model)
    record = json.loads(json.dumps(cut(model, trace(model, ROWS), {"0": [1, 4, 5]})))
    assert record["kept"] == {
        "0.weight": {"0": [1, 4, 5]},
        "0.bias": {"0": [1, 4, 5]},
        "2.weight": {"1": [1, 4, 5]},
    }
    assert torch.equal(model[2].weight, before[2].weight[:, [1, 4, 5]])
    for name, dims in record["kept"].items():
        for dim, positions in dims.items():
            moments[name] = moments[name].index_select(int(dim), torch.tensor(positions))
    assert {n: m.shape for n, m in moments.items()} == {n: p.shape for n, p in model.named_parameters()}


def test_frozen_parameters_stay_frozen_and_the_dtype_stays():
    model = nets.mlp().double()
    model[0].weight.requires_grad_(False)
    cut(model, trace(model, ROWS), {"0": [0, 1]})
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert model[0].weight.dtype == torch.float64 and isinstance(model[0].weight, nn.Parameter)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"nothing": [0]}, "'nothing' is no group of this model; groups: 0, "),
        ({"0": []}, "ascending numbers from 0 to 15, at least one"),
        ({"0": [0, 16]}, "ascending numbers from 0 to 15"),
        ({"0": [2, 1]}, "ascending numbers"),
        ({"4": [0, 1]}, "nothing can be removed from '4': the model's output"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_cut(kept, message):
    model = nets.mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        cut(model, trace(model, ROWS), {"2": [0], **kept})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_block_that_is_none_is_refused():
    model = nets.mlp()
    with pytest.raises(ConfigError, match="'0' is no block that may go; blocks: none"):
        cut(model, trace(model, ROWS), {}, blocks=["0"])


def test_a_record_for_another_model_is_refused():
    record = cut(model := nets.mlp(), trace(model, ROWS), {"0": [15]})
    with pytest.raises(ConfigError, match=r"positions up to 15 along dim 0 of '0.weight'.*\[8, 6\]"):
        recut(nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 11)), record)
    with pytest.raises(ConfigError, match=r"'0.bias', which this model does not have"):
        recut(nn.Sequential(nn.Linear(6, 16, bias=False), nn.Identity(), nn.Linear(16, 11)), record)


def test_a_model_that_has_changed_since_it_was_traced_is_not_cut():
    model = nets.FusedAttention("split")
    graph = trace(model, (torch.rand(2, 7, 6),))
    model.style = "ratio"
    with pytest.raises(ConfigError, match=r"cutting qkv: .*another path"):
        cut(model, graph, {"qkv": [0, 1]})
    assert model.qkv.out_features == 96


def test_heads_that_follow_a_ratio_of_two_sizes_stay_whole():
    graph = trace(nets.FusedAttention("ratio"), (torch.rand(2, 7, 6),))
    assert not graph.free("heads") and "unflatten" in (graph.group("qkv").fixed or "")


def test_costs_are_foretold():
    model = nets.vgg()
    example = (torch.rand(1, 3, 8, 8),)
    graph = trace(model, example)
    by_hand = 8 * 3 * 9 * 64 + 16 * 8 * 9 * 16 + 16 * 16 * 9 * 16 + 64 * 24 + 24 * 5
    assert graph_macs(graph) == macs(model, example) == by_hand
    assert graph_parameters(graph) == sum(p.numel() for p in model.parameters())
    # A filter of the first convolution: 27 weights, bias, scale and shift, and what the next one reads of it.
    assert unit_cost(graph, graph.group("0")) == (27 + 1 + 2 + 16 * 9, 27 * 64 + 16 * 9 * 16)
    assert unit_cost(graph, graph.group("15")) == (0, 0)


def test_attention_costs_its_projections_and_two_products():
    rows, tokens, width = 2, 7, 32
    model = nets.FusedAttention("chunk")
    assert macs(model, (torch.rand(rows, tokens, 6),)) == rows * tokens * (
        6 * width + 4 * width * width + 5 * width + 2 * tokens * width
    )


def group_of(size: int, fixed: str | None = None) -> Group:
    member = Member(name="w", dim=0, role="out", index=torch.arange(size)[:, None])
    return Group(name="w", kind="heads", members=(member,), fixed=fixed)


@pytest.mark.parametrize(
    ("size", "wanted", "multiple", "kept"),
    [
        (20, 9.4, 1, 9),
        (20, 9.5, 1, 10),
        (20, 0.0, 1, 1),
        (20, 9, 8, 8),
        (20, 1, 8, 8),
        (20, 19, 8, 16),
        (20, 20, 8, 20),
        (6, 2, 8, 6),
    ],
)
def test_how_many_are_allowed(size, wanted, multiple, kept):
    assert allowed(group_of(size), wanted, multiple) == kept
    assert allowed(group_of(size, "fixed"), wanted, multiple) == size


def test_grids_of_quantized_weights_go_with_their_rows():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5))
    for layer, groups in ((model[0], 1), (model[2], 1), (model[4], 3)):
        layer.register_buffer("weight_scale", torch.rand(layer.out_features, groups))
    scale = model[2].get_buffer("weight_scale").clone()
    graph = trace(model, ROWS)
    assert "one scale serves a run of inputs" in (graph.group("2").fixed or "")
    cut(model, graph, {"0": [0, 3, 5]})
    assert model[0].get_buffer("weight_scale").shape == (3, 1)
    assert torch.equal(model[2].get_buffer("weight_scale"), scale)
