"""Models of transformers, tiny: cut, they are the silenced whole ones, or the library's own smaller ones."""

import itertools

import pytest
import torch
from forgepress.compression.structure import trace
from forgepress.tests.sessions import torchvision_operators
from torch import nn

from .cutting import check_cut, every_second, outputs, randomized

transformers = pytest.importorskip("transformers")
torchvision_operators()

TOKENS = (torch.arange(12).reshape(2, 6) % 31,)
IMAGES = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
HALF = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
GPT2 = {"n_layer": 2, "vocab_size": 31, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
GQA = {"vocab_size": 31, "head_dim": 8, "num_key_value_heads": 2}


def build(kind: str, task: str, **values) -> nn.Module:
    config = transformers.AutoConfig.for_model(kind, **values)
    return getattr(transformers, f"AutoModelFor{task}").from_config(
        config, attn_implementation=values.get("attn")
    )


# Kind, task, input, settings, and those of the library's own model with half of everything.
ATTENTION = {
    "bert": ("SequenceClassification", TOKENS, {**SMALL, "vocab_size": 31}, {**HALF, "vocab_size": 31}),
    "gpt2": (
        "CausalLM",
        TOKENS,
        {**GPT2, "n_embd": 32, "n_head": 4, "n_inner": 48},
        {**GPT2, "n_embd": 16, "n_head": 2, "n_inner": 24},
    ),
    "llama": ("CausalLM", TOKENS, {**SMALL, **GQA}, {**HALF, **GQA, "num_key_value_heads": 1}),
    "vit": (
        "ImageClassification",
        IMAGES,
        {**SMALL, "image_size": 32, "patch_size": 8},
        {**HALF, "image_size": 32, "patch_size": 8},
    ),
}
CONVOLUTION = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 2], "layer_type": "bottleneck"},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.25},
    "convnext": {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "image_size": 32},
}


def made(kind: str, attention: str = "sdpa", half: bool = False):
    if kind in CONVOLUTION:
        return lambda: build(kind, "ImageClassification", **CONVOLUTION[kind])
    task, _, whole, smaller = ATTENTION[kind]
    return lambda: build(kind, task, **(smaller if half else whole), attn=attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ATTENTION)
def test_half_the_heads_and_mlp_features_of_every_layer_go(kind, attention):
    example = ATTENTION[kind][1]
    graph, _, _ = check_cut(
        made(kind, attention), example, keep=lambda g: every_second(g, "heads", "neurons")
    )
    heads = 2 if kind == "llama" else 4
    assert [(g.size, g.members[0].index.shape[0]) for g in graph.free("heads")] == [(heads, heads)] * 2
    assert [g.size for g in graph.free("neurons")][:2] == [48, 48]
    assert len(graph.blocks) == 2 and {block.returns for block in graph.blocks} == {"tensor"}


@pytest.mark.parametrize("kind", ATTENTION)
def test_another_number_of_heads_in_each_layer(kind):
    def keep(graph):
        counts = itertools.cycle([1, graph.free("heads")[0].size - 1])
        return {g.name: list(range(n)) for g, n in zip(graph.free("heads"), counts, strict=False)}

    check_cut(made(kind), ATTENTION[kind][1], keep=keep)


@pytest.mark.parametrize("kind", ATTENTION)
def test_half_of_everything_is_the_librarys_own_model_of_half_the_size(kind):
    """Norms over the width see fewer features, so that a silenced whole model is no reference: this one is."""
    example = ATTENTION[kind][1]
    graph, model, _ = check_cut(made(kind), example, exact=False)
    assert [g.size for g in graph.free("width")] == [32]
    smaller = randomized(made(kind, half=True)()).eval()
    if kind in ("bert",):  # the pooler is cut on its own
        assert model.bert.pooler.dense.weight.shape == (16, 16)
    smaller.load_state_dict(model.state_dict())
    for name, buffer in model.named_buffers():
        smaller.get_buffer(name).copy_(buffer)
    torch.testing.assert_close(outputs(smaller, example), outputs(model, example), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CONVOLUTION)
def test_half_of_all_channels_go(kind):
    exact = kind != "convnext"  # its layer norms run over the stream
    graph, model, _ = check_cut(made(kind), IMAGES, exact=exact)
    assert [g.name for g in graph.groups if g.fixed and g.members[0].role != "in"] == [
        g.name for g in graph.groups if g.fixed == "the model's output"
    ]
    if kind == "convnext":
        check_cut(made(kind), IMAGES, keep=lambda g: every_second(g, "neurons"))
        half = build(
            "convnext", "ImageClassification", **{**CONVOLUTION[kind], "hidden_sizes": [4, 8]}
        ).eval()
        half.load_state_dict(model.state_dict())
        torch.testing.assert_close(outputs(half, IMAGES), outputs(model, IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*ATTENTION, *CONVOLUTION])
def test_a_whole_block_goes(kind):
    example = IMAGES if kind in CONVOLUTION else ATTENTION[kind][1]
    graph = trace(made(kind)(), example)
    assert graph.blocks
    name = graph.blocks[-1].name
    _, model, record = check_cut(
        made(kind), example, keep=lambda g: {g.free()[0].name: [0]}, blocks=[name], exact=False
    )
    assert list(record["blocks"]) == [name] and not list(model.get_submodule(name).parameters())
    parameters = sum(p.numel() for p in made(kind)().get_submodule(name).parameters())
    assert graph.blocks[-1].parameters == parameters


def test_a_tied_head_stays_tied_to_the_embedding():
    _, model, record = check_cut(made("gpt2"), TOKENS, exact=False)
    assert model.lm_head.weight is model.transformer.wte.weight and model.lm_head.in_features == 16
    assert "lm_head.weight" not in record["kept"]


def test_masks_given_as_inputs_and_training_mode_are_traced():
    model = made("bert", "eager")().train()
    example = {"input_ids": TOKENS[0], "attention_mask": torch.ones_like(TOKENS[0])}
    graph = trace(model, example)
    assert len(graph.free("heads")) == 2 and len(graph.free("width")) == 1
