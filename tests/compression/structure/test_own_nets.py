"""Networks with one kind of coupling each: cut, they compute what the whole ones do with those units silent."""

from functools import partial

import pytest
import torch
from forgepress.compression.structure import cut, trace
from forgepress.errors import ConfigError
from torch import nn

from . import nets
from .cutting import check_cut, every_second, outputs, ties

IMAGES = (torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
ROWS = (torch.rand(2, 7, 6, generator=torch.Generator().manual_seed(0)),)

# The network, its input, and how many units each free group has.
NETS = {
    "mlp": (nets.mlp, (ROWS[0][0],), {"0": 16, "2": 11}),
    "vgg": (nets.vgg, IMAGES, {"0": 8, "4": 16, "7": 16, "12": 24}),
    "residual add": (nets.Residual, IMAGES, {"stem": 8, "last": 12}),
    "concatenation": (nets.Concatenation, IMAGES, {"one": 8, "two": 6, "both": 4}),
    "depthwise": (partial(nets.Grouped, 16), IMAGES, {"first": 16, "last": 8}),
    "many groups": (partial(nets.Grouped, 8), IMAGES, {"first": 8, "last": 8}),
    "few groups": (partial(nets.Grouped, 2), IMAGES, {"first": 8, "grouped": 16, "last": 8}),
    "shuffle": (nets.Shuffled, IMAGES, {"first": 8}),
    "gate": (nets.Gate, IMAGES, {"first": 8, "down": 4}),
    "u-net": (nets.UNet, IMAGES, {"first": 8, "down": 12, "up": 10}),
    "padded shortcut": (nets.PaddedShortcut, IMAGES, {"first": 8}),
    "gated mlp": (partial(nets.GatedMLP, False), ROWS, {"up": 16}),
    "fused gated mlp": (partial(nets.GatedMLP, True), ROWS, {"up": 16}),
    "tied": (nets.TiedAutoencoder, ROWS, {"encoder": 16}),
    "recurrent": (nets.Recurrent, ROWS, {"first": 8}),
    "grouped query": (nets.GroupedQuery, ROWS, {"query": 2}),
    "mask": (nets.Masked, ROWS, {"first": 16}),
    **{
        f"qkv by {style}": (partial(nets.FusedAttention, style), ROWS, {"first": 32, "qkv": 4})
        for style in ("reshape", "split", "slice", "chunk", "einsum")
    },
}


@pytest.mark.parametrize("name", NETS)
def test_half_the_units_of_every_group_go(name):
    make, example, sizes = NETS[name]
    graph, model, _ = check_cut(make, example)
    assert {g.name: g.size for g in graph.free()} == sizes
    again = {g.name: g.size for g in trace(model, example).groups}
    larger = {
        name: size for name, size in sizes.items() if size > 2
    }  # one key-value head leaves its query heads free
    assert {n: again[n] for n in larger} == {n: (size + 1) // 2 for n, size in larger.items()}, (
        "traced again as cut"
    )


def test_what_groups_are_called():
    kinds = {name: {g.name: g.kind for g in trace(NETS[name][0](), NETS[name][1]).free()} for name in NETS}
    assert kinds["vgg"] == {"0": "channels", "4": "channels", "7": "channels", "12": "neurons"}
    assert kinds["residual add"]["stem"] == "channels" and kinds["grouped query"] == {"query": "heads"}
    assert kinds["qkv by split"] == {"first": "width", "qkv": "heads"}


def test_attributes_that_hold_sizes_follow():
    _, model, record = check_cut(partial(nets.FusedAttention, "split"), ROWS, keep=lambda g: {"qkv": [1, 3]})
    assert record["attributes"][""] == {"heads": 2, "width": 16} and model.heads == 2
    _, model, _ = check_cut(partial(nets.Grouped, 16), IMAGES, keep=lambda g: {"first": [0, 5, 6]})
    grouped = model.get_submodule("grouped")
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (3, 3, 6)


def test_heads_of_a_fused_layer_are_found_in_all_three_parts():
    graph = trace(nets.FusedAttention("split"), ROWS)
    member = graph.group("qkv").members[0]
    assert member.name == "qkv.weight" and member.dim == 0 and member.role == "out"
    assert member.indices([1]).tolist() == [*range(8, 16), *range(40, 48), *range(72, 80)]


def test_key_value_heads_go_with_their_query_heads():
    members = {m.name: m for m in trace(nets.GroupedQuery(), ROWS).group("query").members}
    assert members["query.weight"].indices([1]).tolist() == list(range(16, 32))
    assert (
        members["key.weight"].indices([1]).tolist()
        == members["value.bias"].indices([1]).tolist()
        == [4, 5, 6, 7]
    )


def test_tied_parameters_are_cut_once_and_stay_tied():
    _, model, record = check_cut(nets.TiedAutoencoder, ROWS)
    assert ties(model) == [["encoder.weight", "again.weight"]] and "again.weight" not in record["kept"]
    assert model.get_submodule("again").out_features == 8


def test_group_norm_keeps_its_groups_or_loses_whole_ones():
    def make(groups):
        return nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(groups, 16), nn.ReLU(), nn.Conv2d(16, 5, 1))

    graph, model, _ = check_cut(partial(make, 8), IMAGES)  # whole groups: the others' statistics stay
    assert graph.group("0").size == 8 and model[1].num_groups == 4 and model[1].num_channels == 8
    graph, model, _ = check_cut(partial(make, 2), IMAGES, exact=False)
    assert graph.group("0").size == 8 and model[1].num_groups == 2 and model[1].num_channels == 8


def test_a_block_is_what_adds_to_its_input():
    graph, _, _ = check_cut(
        nets.Excited, ROWS, keep=lambda g: {"stem": [1, 2, 6]}, blocks=["layers.1"], exact=False
    )
    assert [block.name for block in graph.blocks] == ["layers.1"]
    whole = nets.Excited()
    values = {n: t for n, t in whole.state_dict().items() if not n.startswith("layers.1.")}
    graph, want = trace(whole, ROWS), whole.stem(ROWS[0])
    for number in (0, 2):
        want = whole.layers[number](want)
    cut(whole, graph, {}, blocks=["layers.1"])
    torch.testing.assert_close(whole(ROWS[0]), whole.head(want))
    assert whole.state_dict().keys() == values.keys()


# ── what cannot go


def test_a_size_written_into_the_code_keeps_its_group_whole():
    graph, model, _ = check_cut(nets.WrittenSize, IMAGES)
    assert [g.name for g in graph.free()] == ["hidden"]
    assert (graph.group("conv").fixed or "").startswith("view in the model itself: fails on what is left")
    assert model.get_submodule("conv").out_channels == 6


def test_an_unknown_operation_keeps_what_it_sees_whole_and_is_named():
    graph, _, _ = check_cut(nets.UnknownOperation, ROWS)
    assert "cdist" in (graph.group("first").fixed or "") and "the model itself" in (
        graph.group("first").fixed or ""
    )
    assert [g.name for g in graph.free()] == ["hidden"]


def test_code_that_looks_at_values_cannot_be_traced():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nets.LooksAtValues()

        def forward(self, x):
            return self.part(x)

    with pytest.raises(ConfigError, match=r"_local_scalar_dense in part cannot be traced"):
        trace(Outer(), ROWS)


def test_torchs_own_encoder_loses_mlp_features_and_its_attention_stays():
    def make():
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        return nn.Sequential(nn.Linear(6, 16), encoder, nn.Linear(16, 5))

    graph, _, _ = check_cut(make, ROWS)
    assert {g.name: g.size for g in graph.free()} == {"1.layers.0.linear1": 24, "1.layers.1.linear1": 24}
    assert "self_attn" in (graph.group("1.layers.1.self_attn.in_proj_weight").fixed or "")
    assert [block.name for block in graph.blocks] == ["1.layers.0", "1.layers.1"]


def test_training_mode_gives_the_same_groups():
    made = nets.vgg()
    one, other = trace(made.train(), IMAGES), trace(made.eval(), IMAGES)
    assert [(g.name, g.size, g.kind) for g in one.groups] == [(g.name, g.size, g.kind) for g in other.groups]
    assert made[1].num_batches_tracked == 0


def test_a_dict_of_inputs_and_a_meta_model_do_as_well():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, left, right):
            return {"logits": self.two(self.one(left) * self.one(right)), "nothing": None}

    with torch.device("meta"):
        model = Named()
    graph = trace(model, {"right": ROWS[0], "left": ROWS[0]})
    assert {g.name: g.fixed is None for g in graph.groups} == {
        "one": True,
        "one.inputs": False,
        "two": False,
    }


def test_keeping_everything_changes_nothing():
    model = nets.vgg().eval()
    want = outputs(model, IMAGES)
    graph = trace(model, IMAGES)
    record = cut(model, graph, {g.name: list(range(g.size)) for g in graph.groups})
    assert record["kept"] == record["attributes"] == {} and torch.equal(outputs(model, IMAGES), want)
    assert every_second(graph)
