"""The built-in networks: traced, cut, equal to the whole model with those units silenced."""

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.trainer.models import build_model

from .cutting import check_cut, every_second


def made(spec):
    return lambda: build_model(spec).module


def sample(spec):
    built = build_model(spec)
    return (torch.rand(2, *built.input_shape),)


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5", "conv_bn"])
def test_half_the_units_of_every_group_go(name):
    graph, _, _ = check_cut(made(name), sample(name))
    assert {g.name: g.size for g in graph.free()} == {
        "lenet_300_100": {"fc1": 300, "fc2": 100},
        "lenet_5": {"conv1": 20, "conv2": 50, "fc1": 500},
        "conv_bn": {"conv1": 32, "conv2": 64, "conv3": 128},
    }[name]
    assert all(g.fixed for g in graph.groups if g not in graph.free())


def test_a_flattened_channel_takes_its_whole_map_along():
    graph, model, record = check_cut(made("lenet_5"), sample("lenet_5"))
    flat = next(m for m in graph.group("conv2").members if m.name == "fc1.weight")
    assert flat.index.shape == (50, 16) and flat.indices([2]).tolist() == list(range(32, 48))
    assert model.get_submodule("fc1").in_features == 25 * 16 and record["attributes"]["conv2"] == {
        "in_channels": 10,
        "out_channels": 25,
    }


GPT = {"name": "gpt", "vocabulary": 31, "context": 8, "layers": 2, "heads": 4, "width": 32}


@pytest.mark.parametrize("tied", [False, True])
def test_heads_and_mlp_of_the_gpt_go(tied):
    spec = {**GPT, "tied": tied}
    tokens = (torch.arange(16).reshape(2, 8) % 31,)
    graph, model, _ = check_cut(made(spec), tokens, keep=lambda g: every_second(g, "heads", "neurons"))
    assert [g.size for g in graph.free("heads")] == [4, 4] and [g.size for g in graph.free("width")] == [32]
    assert model.get_submodule("blocks.0.attention.query").out_features == 16
    assert [block.name for block in graph.blocks] == ["blocks.0", "blocks.1"]
    with pytest.raises(ConfigError, match=r"embed.tokens.inputs.*embedding in embed.tokens: vocabulary"):
        check_cut(made(spec), tokens, keep=lambda g: {"embed.tokens.inputs": [0, 1]})
