"""Quantized layers: the same objects and names; inputs rounded as torch rounds them; gradients straight through."""

import pytest
import torch
from forgepress.compression.quantization.activations import ActivationQuantizer
from forgepress.compression.quantization.common_input import CommonInput
from forgepress.compression.quantization.grid import grid_of, snap_, weight_range
from forgepress.compression.quantization.modules import (
    can_be_quantized,
    quantized,
    quantized_layers,
)
from forgepress.compression.quantization.rounding import rounded
from torch import Tensor, nn


def settled(low: float, high: float, symmetric: bool) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(symmetric=symmetric)
    scale, zero_point = grid_of(torch.tensor(low), torch.tensor(high), 8, symmetric)
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(zero_point)
    quantizer.enabled = True
    return quantizer


def numbers_of(quantizer: ActivationQuantizer) -> tuple[float, int]:
    return float(quantizer.scale), int(quantizer.zero_point)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("numbers_at_hand", [True, False])
@pytest.mark.parametrize(
    ("shape", "high"),
    [((13, 7), 1.5), ((9, 64), 1.5), ((3, 9, 64), 2.8), ((4, 3, 8, 8), 2.5)],  # in many rows; in few
)
def test_inputs_and_gradients_are_those_of_torchs_fake_quantize(
    symmetric: bool, numbers_at_hand: bool, shape: tuple[int, ...], high: float
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    quantizer = settled(0.5 - high, high, symmetric)  # clips some
    if numbers_at_hand:
        quantizer.numbers, quantizer.observing = numbers_of(quantizer), True
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = quantizer(ours)
    reference = torch.fake_quantize_per_tensor_affine(
        theirs, quantizer.scale, quantizer.zero_point, *quantizer.levels
    )
    torch.testing.assert_close(y, reference)
    gradient = torch.randn_like(x)
    y.backward(gradient)
    reference.backward(gradient)
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad == 0).any() and (ours.grad != 0).any()


def test_where_nothing_is_clipped_the_gradient_passes_as_it_is() -> None:
    quantizer = settled(-4.0, 4.0, False)
    quantizer.numbers, quantizer.observing = numbers_of(quantizer), True
    for x, clips in ((torch.linspace(-4, 4, 9), False), (torch.linspace(-4, 4.1, 9), True)):
        x.requires_grad_()
        quantizer(x).backward(torch.ones(9))
        assert x.grad is not None and (int((x.grad == 0).sum()) == 1) == clips


def test_layers_that_take_the_same_tensor_round_it_once_and_see_it_each() -> None:
    common, first, second = CommonInput(), settled(-1.0, 1.5, False), settled(-1.0, 1.5, False)
    for quantizer in (first, second):
        quantizer.common, quantizer.numbers, quantizer.observing = common, numbers_of(quantizer), True
    x = torch.randn(13, 7, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y, again = first(x), second(x)
    assert again is y and first.seen is not None and second.seen is not None
    assert torch.equal(first.seen, second.seen)
    (y.sum() + again.sum()).backward()
    alone = x.detach().clone().requires_grad_()
    first.common = None
    (2 * first(alone).sum()).backward()
    assert x.grad is not None and alone.grad is not None and torch.equal(x.grad, alone.grad)
    with torch.no_grad():  # what was made for backward, and what x was before, is not taken again
        other = second(x)
        assert other is not y and torch.equal(other, y)
        x.mul_(0.5)
        assert not torch.equal(second(x), y)
    second.numbers = (2 * float(second.scale), 0)
    assert second(x) is not first(x)


def test_a_quantizer_is_the_identity_until_it_is_enabled_and_notes_what_it_sees_only_while_observing() -> (
    None
):
    quantizer, x = ActivationQuantizer(), torch.randn(4, 3)
    assert quantizer(x) is x and quantizer.seen is None
    quantizer.observing = True
    assert quantizer(x) is x
    quantizer(x * 2 + 5)
    assert quantizer.seen is not None
    assert quantizer.seen.tolist() == [-float(x.min()), float((x * 2 + 5).max())]


def test_a_dynamic_quantizer_gives_every_token_the_grid_of_its_own_range() -> None:
    quantizer = ActivationQuantizer(dynamic=True)
    quantizer.enabled = True
    x = torch.randn(2, 5, 16) * torch.logspace(-3, 3, 5).view(1, 5, 1)
    y = quantizer(x)
    steps = (x.amax(-1).clamp(min=0) - x.amin(-1).clamp(max=0)) / 255
    assert ((y - x).abs().amax(-1) <= 0.51 * steps).all() and not torch.equal(x, y)
    alone = quantizer(x[1:, 3:4])
    assert torch.equal(alone, y[1:, 3:4])  # what else is in the batch does not matter
    assert list(quantizer.state_dict()) == []


class Subclass(nn.Linear):
    """A linear layer by another name."""


class Different(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), Subclass(6, 4), nn.Conv2d(2, 3, 3), nn.Conv1d(2, 3, 3), nn.Embedding(5, 4)]
)
def test_a_layer_stays_the_same_object_with_the_same_parameters(layer: nn.Module) -> None:
    parameters, kind = dict(layer.named_parameters()), type(layer)
    same = quantized(
        layer,
        weight_name="weight",
        weight_bits=4,
        group_size=0,
        weight_symmetric=True,
        input_quantizer=ActivationQuantizer(),
    )
    assert same is layer and isinstance(layer, kind)
    assert {n: id(p) for n, p in same.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    assert (same.input_quantizer is None) == isinstance(layer, nn.Embedding)
    assert list(quantized_layers(nn.Sequential(layer))) == ["0"]


def test_a_layer_with_a_forward_of_its_own_is_refused() -> None:
    assert not can_be_quantized(Different(3, 3))
    with pytest.raises(ValueError, match="Different"):
        quantized(
            Different(3, 3),
            weight_name="weight",
            weight_bits=8,
            group_size=0,
            weight_symmetric=True,
            input_quantizer=None,
        )


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_delivered_weight_is_its_integers_times_its_scale(symmetric: bool) -> None:
    layer = quantized(
        nn.Linear(10, 4),
        weight_name="weight",
        weight_bits=4,
        group_size=4,
        weight_symmetric=symmetric,
        input_quantizer=None,
    )
    scale, zero_point = grid_of(*weight_range(layer.weight.detach(), 4), 4, symmetric)
    assert list(scale.shape) == [4, 3]
    layer.deliver(scale, None if symmetric else zero_point)
    with torch.no_grad():
        assert layer.weights_off_grid() > 0
        snap_(layer.weight, *layer.weight_grid(), 4)
    assert layer.weights_off_grid() == 0
    q = layer.integer_weight().float()
    s, z = layer.weight_grid()
    assert torch.equal((q if z is None else q - z) * s, layer.weight)
    assert {"weight_scale"} <= set(layer.state_dict())


def test_rounding_keeps_the_dtype_of_the_activations() -> None:
    x = torch.randn(8).bfloat16()
    assert rounded(x, torch.tensor(0.1), torch.tensor(3), (0, 255)).dtype == torch.bfloat16
