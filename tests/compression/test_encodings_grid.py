"""Quantized weights are stored as integers, come back bit for bit, and take less where many are zero."""

import math

import pytest
import torch
from forgepress.compression.encodings import Encoded, choose, decode, grid
from forgepress.compression.quantization.grid import exact
from torch import Tensor

SHAPES = {"matrix": (17, 31), "filters": (6, 5, 3, 3), "one row": (1, 7), "one column": (9, 1)}


def quantized(
    shape: tuple[int, ...],
    bits: int,
    group: int = 0,
    affine: bool = False,
    density: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(weight, scale, zero point) with every level in use; group 0: one scale a row."""
    generator = torch.Generator().manual_seed(seed)
    groups = math.ceil(shape[1] / group) if group else 1
    ones = [1] * (len(shape) - 2)
    scale = exact(torch.rand(shape[0], groups, *ones, generator=generator) + 0.01)
    features = torch.arange(shape[1]) // (group or shape[1])
    first, last = (0, 2**bits - 1) if affine else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    levels = torch.randint(first, last + 1, shape, generator=generator)
    levels.view(-1)[0], levels.view(-1)[-1] = first, last
    zero = torch.randint(0, 2**bits, scale.shape, generator=generator, dtype=torch.int32) if affine else None
    spread = 0 if zero is None else zero.index_select(1, features)
    kept = torch.rand(shape, generator=generator) < density
    levels = torch.where(kept, levels, torch.as_tensor(spread))
    return (levels - spread) * scale.index_select(1, features), scale, zero


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left.view(torch.int32), right.view(torch.int32))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("affine", [False, True], ids=["symmetric", "affine"])
@pytest.mark.parametrize("density", [1.0, 0.3, 0.02])
def test_every_grid_comes_back_bit_for_bit(shape, bits, group, affine, density):
    weight, scale, zero_point = quantized(shape, bits, group, affine, density)
    encoded = grid.encode(weight, scale, zero_point)
    assert encoded is not None and encoded.encoding == "grid"
    assert encoded.settings["bits"] <= bits
    assert same_bits(decode(encoded), weight)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_dense_weight_takes_its_bits_and_no_more(bits):
    weight, scale, _ = quantized((64, 96), bits)
    encoded = choose(weight, scale)
    assert encoded.encoding == "grid" and encoded.bytes == 64 * 96 * bits // 8
    assert encoded.streams.keys() == {"levels"}  # the scales are the model's own tensor


@pytest.mark.parametrize(("density", "form"), [(0.9, None), (0.4, "mask"), (0.02, "gaps")])
def test_zeros_make_it_smaller_still_and_the_smallest_form_is_taken(density, form):
    weight, scale, zero_point = quantized((200, 150), 8, affine=True, density=density)
    encoded = choose(weight, scale, zero_point)
    assert encoded.streams.keys() == {"levels", *([form] if form else [])}
    assert same_bits(decode(encoded), weight)
    kept = int((weight != 0).sum())
    if form == "mask":
        assert encoded.bytes == 200 * 150 // 8 + kept


def test_four_bits_with_zeros_pack_two_kept_levels_into_a_byte():
    weight, scale, _ = quantized((200, 150), 4, density=0.2)
    encoded = choose(weight, scale)
    assert encoded.settings["bits"] == 4 and "levels" in encoded.streams
    assert encoded.bytes < 200 * 150 * 4 / 8 * 0.75
    assert same_bits(decode(encoded), weight)


def test_the_levels_in_use_decide_how_many_bits_are_stored():
    weight = torch.tensor([[0.5, -1.0, 1.5]])
    scale = torch.tensor([[0.5]])
    assert grid.encode(weight, scale).settings["bits"] == 4  # levels 1, -2, 3
    assert grid.encode(weight[:, :2], scale).settings["bits"] == 2


@pytest.mark.parametrize("spoil", ["one value off", "negative zero", "infinite", "another dtype", "a vector"])
def test_what_is_not_exactly_on_the_grid_takes_another_encoding(spoil):
    weight, scale, _ = quantized((40, 30), 8)
    if spoil == "one value off":
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    elif spoil == "negative zero":
        weight[3, 4] = -0.0
    elif spoil == "infinite":
        weight[3, 4] = math.inf
    elif spoil == "another dtype":
        weight = weight.double()
    else:
        weight, scale = weight[0], scale[0]
    assert grid.encode(weight, scale) is None
    encoded = choose(weight, scale)
    assert encoded.encoding == "raw" and torch.equal(decode(encoded), weight)


def test_a_scale_that_does_not_go_with_the_weight_is_not_used():
    weight, scale, _ = quantized((40, 30), 8)
    for wrong in (scale[:7], scale[:, :, None], scale.double(), torch.zeros_like(scale)):
        assert grid.encode(weight, wrong) is None


def test_ragged_groups_are_told_apart_by_the_values():
    weight, scale, _ = quantized(
        (8, 10), 8, group=4
    )  # 4, 4 and 2 features: 5 groups of 2 would not fit 3 scales
    encoded = grid.encode(weight, scale)
    assert scale.shape == (8, 3) and encoded.settings["group"] == 4


def damaged(encoded: Encoded, **changes) -> Encoded:
    return Encoded(**{**{name: getattr(encoded, name) for name in encoded.__dataclass_fields__}, **changes})


@pytest.mark.parametrize("density", [1.0, 0.4, 0.02])
def test_damage_is_refused(density):
    weight, scale, zero_point = quantized((40, 30), 8, group=8, affine=True, density=density)
    encoded = grid.encode(weight, scale, zero_point)
    settings = encoded.settings
    for changes in (
        {"shape": (3, 30)},
        {"shape": (40,)},
        {"streams": {}},
        {"shared": {}},
        {"shared": {"scale": scale[:, :1], "zero_point": zero_point}},
        {"settings": {**settings, "bits": 3}},
        {"settings": {**settings, "group": 0}},
        {"settings": {**settings, "group": "8"}},
        {"settings": {**settings, "bits": 2}},
        {"dtype": torch.float64},
        {"streams": {**encoded.streams, "levels": encoded.streams["levels"][:-1].clone()}},
    ):
        with pytest.raises(ValueError, match=r"want|missing|has|go with"):
            decode(damaged(encoded, **changes))
