"""The models: their sizes, their stage order, their seeds, and what they refuse."""

import json
import math
from fnmatch import fnmatch

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.trainer.models import BuiltModel, build_model, model_names
from torch import nn

GPT = {"name": "gpt", "layers": 2, "heads": 3, "width": 12, "vocabulary": 17, "context": 9}
BUILT_IN = {
    "lenet_300_100": "lenet_300_100",
    "lenet_5": "lenet_5",
    "conv_bn": {"name": "conv_bn", "widths": [3, 5], "input_shape": [3, 7, 9], "classes": 4},
    "gpt": GPT,
    "vgg": {"name": "vgg", "stages": [[3, 5], [4], [7]], "input_shape": [3, 7, 9], "classes": 4},
    "mlp": {"name": "mlp", "hidden": [7, 5, 3], "input_shape": [1, 2, 6], "classes": 4},
}


def rows_for(built: BuiltModel, rows: int = 3) -> torch.Tensor:
    (zeros,) = built.example(rows)
    if zeros.is_floating_point():
        return torch.randn(zeros.shape, generator=torch.Generator().manual_seed(1))
    return torch.randint(built.input_range, zeros.shape, generator=torch.Generator().manual_seed(1))


def parameters(built: BuiltModel) -> int:
    return sum(parameter.numel() for parameter in built.module.parameters())


def states_equal(left: nn.Module, right: nn.Module) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ── sizes


def test_every_built_in_model_is_tested_here():
    assert set(model_names()) == set(BUILT_IN)


def test_lenet_300_100_has_the_published_number_of_parameters():
    assert parameters(build_model("lenet_300_100")) == 266_610


def test_lenet_5_has_the_number_of_parameters_of_caffes():
    built = build_model("lenet_5")
    assert parameters(built) == 431_080
    assert {n: p.numel() for n, p in built.module.named_parameters() if n.endswith("weight")} == {
        "conv1.weight": 500,
        "conv2.weight": 25_000,
        "fc1.weight": 400_000,
        "fc2.weight": 5_000,
    }


def test_convolutions_of_lenet_5_get_relu_only_when_asked():
    relus = {asked: 0 for asked in (False, True)}
    for asked in relus:
        module = build_model({"name": "lenet_5", "convolution_relu": asked}).module
        relus[asked] = sum(isinstance(part, nn.ReLU) for part in module.modules())
    assert relus == {False: 1, True: 3}


def test_gpt_has_the_number_of_parameters_counted_by_hand():
    w = 12
    block = 4 * (w * w + w) + 2 * 2 * w + (w * 4 * w + 4 * w) + (4 * w * w + w)
    assert parameters(build_model(GPT)) == 17 * w + 9 * w + 2 * block + 2 * w + 17 * w
    assert parameters(build_model({**GPT, "tied": True})) == 17 * w + 9 * w + 2 * block + 2 * w


def test_mlp_has_the_parameters_of_the_slimming_papers_network_with_its_scales_where_they_are_asked_for():
    built = build_model({"name": "mlp", "scale": 0.5})
    assert parameters(built) == 784 * 500 + 500 + 500 * 300 + 300 + 300 * 10 + 10 + 2 * (500 + 300)
    scales = [m.weight for m in built.module.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [len(scale) for scale in scales] == [500, 300]
    assert all((scale == 0.5).all() for scale in scales)


def test_conv_bn_stops_pooling_when_the_image_is_one_pixel():
    built = build_model({"name": "conv_bn", "widths": [2, 2, 2, 2, 2], "input_shape": [1, 8, 8]})
    assert sum(isinstance(part, nn.MaxPool2d) for part in built.module.modules()) == 3
    assert built.module(torch.zeros(2, 64)).shape == (2, 10)


def test_vgg_halves_the_picture_between_stages_and_has_the_parameters_counted_by_hand():
    built = build_model(BUILT_IN["vgg"])
    convolutions = 9 * (3 * 3 + 3 * 5 + 5 * 4 + 4 * 7) + 2 * (3 + 5 + 4 + 7)
    assert parameters(built) == convolutions + 7 * 4 + 4
    assert built.module[: built.layout.order.index("mean")](*built.example(2)).shape == (2, 7, 1, 2)
    with pytest.raises(ConfigError, match="cannot be halved 2 times"):
        build_model({**BUILT_IN["vgg"], "input_shape": [3, 3, 9]})


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5"])
def test_flat_rows_give_the_same_as_images(name):
    module = build_model(name, data={"input_shape": (1, 28, 28)}).module
    images = torch.randn(3, 1, 28, 28)
    assert torch.equal(module(images), module(images.flatten(1)))


# ── what engines rely on


@pytest.mark.parametrize("name", BUILT_IN)
def test_forward_is_the_composition_of_the_modules_in_order(name):
    built = build_model(BUILT_IN[name])
    built.module.eval()
    hidden = rows = rows_for(built)
    for part in built.layout.order:
        hidden = built.module.get_submodule(part)(hidden)
        assert isinstance(hidden, torch.Tensor)
    assert torch.equal(hidden, built.module(rows))


@pytest.mark.parametrize("name", BUILT_IN)
def test_stages_made_with_identity_compose_to_the_whole_and_keep_names(name):
    spec = BUILT_IN[name]
    whole = build_model(spec)
    order = whole.layout.order
    rows = hidden = rows_for(whole)
    held = []
    for stage in (order[:2], order[2:3], order[3:]):
        part = build_model(spec).module.eval()
        for other in set(order) - set(stage):
            part.set_submodule(other, nn.Identity())
        hidden = part(hidden)
        held += [parameter for parameter, _ in part.named_parameters()]
    assert torch.equal(hidden, whole.module.eval()(rows))
    assert sorted(held) == sorted(parameter for parameter, _ in whole.module.named_parameters())


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_parameter_belongs_to_exactly_one_member_of_the_order(name):
    built = build_model(BUILT_IN[name])
    for parameter, _ in built.module.named_parameters():
        assert sum(parameter.startswith(f"{part}.") for part in built.layout.order) == 1, parameter


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_glob_of_the_tensor_plan_finds_a_linear_layer(name):
    built = build_model(BUILT_IN[name])
    modules = dict(built.module.named_modules())
    for glob in built.layout.tensor_plan:
        found = [modules[path] for path in modules if fnmatch(path, glob)]
        assert found and all(isinstance(module, nn.Linear) for module in found), glob


def test_gpt_with_a_third_of_the_heads_gives_its_share_of_the_sum():
    """What tensor parallel does: query, key, value by columns, out by rows; the shares add up to the whole."""
    attention = build_model(GPT).module.get_submodule("blocks.0.attention")
    hidden = torch.randn(2, 5, 12)
    whole = attention(hidden)
    total = attention.out.bias.expand_as(whole).clone()
    for rank in range(3):
        cut = slice(4 * rank, 4 * rank + 4)
        share = build_model(GPT).module.get_submodule("blocks.0.attention")
        for name in ("query", "key", "value"):
            linear = getattr(share, name)
            linear.weight = nn.Parameter(linear.weight[cut].detach())
            linear.bias = nn.Parameter(linear.bias[cut].detach())
        share.out.weight = nn.Parameter(share.out.weight[:, cut].detach())
        share.out.bias = nn.Parameter(torch.zeros(12))
        total += share(hidden)
    torch.testing.assert_close(total, whole)


def test_gpt_sees_no_later_token():
    module = build_model(GPT).module
    tokens = torch.randint(17, (2, 9))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 17
    before, after = module(tokens), module(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_gpt_at_the_start_is_as_good_as_guessing():
    logits = build_model(GPT).module(torch.randint(17, (8, 9)))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(17, (72,)))
    assert abs(loss.item() - math.log(17)) < 0.05


def test_gpt_takes_shorter_rows_and_refuses_longer_ones():
    module = build_model(GPT).module
    assert module(torch.zeros(2, 4, dtype=torch.int64)).shape == (2, 4, 17)
    with pytest.raises(ValueError, match="10 tokens a row, but the context is 9"):
        module(torch.zeros(2, 10, dtype=torch.int64))


def test_a_tied_gpt_shares_one_weight_and_only_its_blocks_are_units():
    built = build_model({**GPT, "tied": True})
    assert built.module.get_parameter("head.weight") is built.module.get_parameter("embed.tokens.weight")
    assert built.layout.order[0] == "embed" and built.layout.units == ("blocks.0", "blocks.1")


def test_gpt_drops_out_in_training_only():
    module = build_model({**GPT, "dropout": 0.5}).module
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    assert not torch.equal(module(tokens), module(tokens))
    module.eval()
    assert torch.equal(module(tokens), module(tokens))


# ── seeds, devices, specs


@pytest.mark.parametrize("name", BUILT_IN)
def test_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(1)
    first = build_model(BUILT_IN[name], seed=3)
    torch.manual_seed(2)
    again, other = build_model(BUILT_IN[name], seed=3), build_model(BUILT_IN[name], seed=4)
    assert states_equal(first.module, again.module)
    assert not states_equal(first.module, other.module)


def test_global_generators_are_left_as_they_were():
    import random

    import numpy as np

    def draw():
        return torch.rand(2).tolist(), random.random(), np.random.rand()

    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(5)
    undisturbed = draw()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(5)
    build_model("lenet_300_100", seed=9)
    assert draw() == undisturbed


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_spec_rebuilds_the_model_after_json(name):
    built = build_model(BUILT_IN[name], data={"classes": 6, "vocabulary": 23, "length": 11})
    again = build_model(json.loads(json.dumps(built.spec)))
    assert again.spec == built.spec and again.layout == built.layout
    assert states_equal(built.module, again.module)


@pytest.mark.parametrize("name", BUILT_IN)
def test_on_the_meta_device_shapes_are_those_of_the_real_model(name):
    real, shapes = build_model(BUILT_IN[name]), build_model(BUILT_IN[name], device="meta")
    assert {n: (t.shape, t.dtype) for n, t in real.module.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in shapes.module.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in shapes.module.state_dict().values())
    assert shapes.module(*shapes.example(2, device="meta")).shape == real.module(*real.example(2)).shape


# ── sizes from the data


def test_unset_sizes_come_from_the_data_and_given_ones_stay():
    built = build_model(
        {"name": "lenet_300_100", "classes": 7}, data={"input_shape": (1, 8, 8), "classes": 10}
    )
    assert built.module(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    gpt = build_model("gpt", data={"vocabulary": 65, "length": 64, "input_shape": (64,)})
    assert gpt.spec["vocabulary"] == 65 and gpt.spec["context"] == 64


def test_facts_may_be_numpy_numbers_and_torch_sizes():
    import numpy as np

    facts = {"input_shape": torch.Size([1, 8, 8]), "classes": np.int64(3)}
    assert json.dumps(build_model("conv_bn", data=facts).spec)


# ── errors


@pytest.mark.parametrize(
    ("spec", "data", "message"),
    [
        ("lenet_30_100", {}, "did you mean 'lenet_300_100'"),
        ({"name": "gpt", "layer": 2}, {}, "unknown setting 'layer', did you mean 'layers'"),
        ("gpt", {}, "vocabulary is not given and the data has no fact 'vocabulary'"),
        ({**GPT, "heads": 5}, {}, "width=12 is not a multiple of heads=5"),
        ({**GPT, "layers": 0}, {}, "layers: .*greater than or equal to 1, given 0"),
        ({**GPT, "layers": "2"}, {}, "layers: .*valid integer, given '2'"),
        ("lenet_5", {"input_shape": (1, 8, 8)}, "too small for two 5×5 convolutions"),
        ("lenet_5", {"input_shape": (784,)}, "fact of the data, set model.input_shape yourself"),
        ({"layers": 2}, {}, "exactly one of name, transformers, timm, factory"),
        ({"name": "gpt", "timm": "resnet18"}, {}, "exactly one of"),
        ({"factory": "nowhere.at.all:make"}, {}, "cannot be imported"),
        ({"factory": "torch.nn:Nothing"}, {}, "has no function 'Nothing'"),
        ({"factory": "torch.nn"}, {}, "not of the form"),
        ({"factory": "builtins:dict"}, {}, "returned dict; want nn.Module or BuiltModel"),
        ({"transformers": "gpt2", "task": "poetry"}, {}, "task='poetry'.*want one of causal_lm"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_to_do(spec, data, message):
    with pytest.raises(ConfigError, match=message):
        build_model(spec, data=data)
