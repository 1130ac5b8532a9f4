"""Quantized layers run on torch's integer kernels and give what the training graph gives; what cannot is refused."""

import copy

import pytest
import torch
from forgepress.compression.integer import torch_layers
from forgepress.compression.integer.agreement import compare
from forgepress.compression.integer.forms import read
from forgepress.compression.integer.torch_layers import (
    IntegerConv,
    IntegerEmbedding,
    IntegerLinear,
    in_integers,
)
from forgepress.compression.quantization.modules import quantized_layers
from forgepress.errors import ConfigError, NoOpError
from forgepress.tests.quantized import Pictures, Words, made, pictures, quantize, words
from torch import nn

KINDS = (IntegerConv, IntegerEmbedding, IntegerLinear)


@pytest.mark.parametrize("kind", [Pictures, Words])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("inputs_symmetric", [False, True], ids=["inputs affine", "inputs symmetric"])
def test_every_layer_runs_in_integers_and_the_outputs_are_those_of_the_model(
    kind, bits, symmetric, inputs_symmetric
):
    model, rows = made(kind, bits=bits, symmetric=symmetric, inputs_symmetric=inputs_symmetric)
    names = set(quantized_layers(model))
    integer = copy.deepcopy(model)
    layers = in_integers(integer)
    assert layers.keys() == names
    assert {layer.arithmetic for layer in layers.values()} <= {"integer", "lookup"}
    assert all(isinstance(integer.get_submodule(name), KINDS) for name in names)
    assert compare(model, integer, rows, what="torch_int8").difference < 0.01


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_inputs_rounded_while_it_runs_have_a_grid_for_each_row_as_in_training(symmetric):
    model, rows = made(Words, inputs="dynamic", symmetric=symmetric)
    integer = copy.deepcopy(model)
    in_integers(integer)
    for inputs in (rows, words(2, 30)):
        found, expected = integer(**inputs)["hidden"], model(**inputs)["hidden"]
        assert (found - expected).norm() / expected.norm() < 0.005


@pytest.mark.parametrize("kind", [Pictures, Words])
@pytest.mark.parametrize(("inputs", "affine"), [("static", True), ("dynamic", False)])
def test_where_kernels_add_in_sixteen_bits_inputs_go_in_two_halves(kind, inputs, affine, monkeypatch):
    monkeypatch.setattr(torch_layers, "overflows", lambda: True)
    model, rows = made(kind, inputs=inputs, symmetric=not affine, inputs_symmetric=not affine)
    integer = copy.deepcopy(model)
    in_integers(integer)
    assert any(getattr(module, "in_halves", False) for module in integer.modules())
    assert compare(model, integer, rows, what="torch_int8").difference < 0.01
    few, _ = made(kind, bits=4)  # products of four bits fit
    in_integers(few)
    assert not any(getattr(module, "in_halves", False) for module in few.modules())


def test_images_rounded_while_it_runs_want_symmetric_grids():
    model, rows = made(Pictures, inputs="dynamic", inputs_symmetric=True)
    integer = copy.deepcopy(model)
    in_integers(integer)
    assert compare(model, integer, rows, what="torch_int8").difference < 0.01
    model, _ = made(Pictures, inputs="dynamic")
    with pytest.raises(NoOpError, match=r"layers first, depthwise, beside would compute in float"):
        in_integers(model)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_one_dimensional_and_padded_convolutions_too():
    class Sounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(2, 6, 4, padding="same")
            self.second = nn.Conv1d(6, 6, 3, padding=2, dilation=2, padding_mode="circular", groups=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu())

    torch.manual_seed(0)
    rows = torch.randn(5, 2, 12)
    model = quantize(Sounds(), rows, symmetric=False)
    integer = copy.deepcopy(model)
    in_integers(integer)
    assert compare(model, integer, rows, what="torch_int8").difference < 0.01


def test_a_layer_that_would_stay_in_float_fails_by_name_unless_it_is_allowed():
    model, _ = made(Words, group=8)
    with pytest.raises(NoOpError, match=r"layers up, down, head would compute in float"):
        in_integers(copy.deepcopy(model))
    layers = in_integers(model, float_layers=["up", "down", "hea*"])
    assert layers["head"].arithmetic == "float" and layers["table"].arithmetic == "lookup"


def test_weights_alone_stay_the_layers_that_they_were():
    model, rows = made(Words, bits=4, group=8, inputs=None)
    expected = model(**rows)["logits"]
    layers = in_integers(model)
    assert layers["up"].arithmetic == "float"
    torch.testing.assert_close(model(**rows)["logits"], expected)


def test_no_float_weight_is_left():
    model, _ = made(Pictures)
    in_integers(model)
    assert all(tensor.dim() < 2 for tensor in [*model.parameters(), *model.buffers()])


def test_a_model_without_quantized_layers_is_refused():
    with pytest.raises(ConfigError, match="no layer is quantized"):
        in_integers(Pictures())


def test_one_row_and_none_at_all():
    model, _ = made(Pictures)
    in_integers(model)
    assert model(pictures(1)).shape == (1, 5)
    assert model(pictures(0)).shape == (0, 5)


def test_a_quantized_model_differs_from_itself_and_an_export_may_do_so_a_little_more():
    model, rows = made(Words)
    found = compare(model, copy.deepcopy(model), rows, what="nothing")
    assert found.difference == 0.0 and found.tolerance == max(0.01, 2 * found.itself) and found.itself > 0
    dynamic, rows = made(Words, inputs="dynamic")
    found = compare(dynamic, copy.deepcopy(dynamic), rows, what="nothing")
    assert found.rounding is not None and found.as_json()["rounding"] == found.rounding


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("group", [0, 5])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_integers_stand_for_exactly_the_weights(symmetric, group, bits):
    model, _ = made(Words, bits=bits, group=group, symmetric=symmetric)
    for name, layer in quantized_layers(model).items():
        form = read(name, layer)
        assert torch.equal(form.dequantized(), layer.weight)
        assert int(form.levels.min()) >= -(2 ** (bits - 1)) and int(form.levels.max()) < 2 ** (bits - 1)
