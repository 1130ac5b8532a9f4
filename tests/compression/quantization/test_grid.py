"""Grids: exact products, zero among the levels, ranges of tensors, channels and groups."""

import pytest
import torch
from forgepress.compression.quantization.grid import (
    affine_grid,
    exact,
    from_levels,
    grid_of,
    levels,
    off_grid,
    snap_,
    spread,
    to_levels,
    weight_range,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_level_times_its_scale_is_exact_in_float32() -> None:
    scales = exact(random(500).abs() * torch.logspace(-20, 5, 500))
    q = torch.arange(-255.0, 256.0).unsqueeze(1)
    assert torch.equal((q * scales).double(), q.double() * scales.double())
    assert torch.equal((q * scales) / scales, q.expand(-1, 500))


def test_an_exact_scale_is_wrong_by_at_most_one_part_in_65536() -> None:
    scales = random(5000).abs().clamp_min(1e-6)
    assert ((exact(scales) - scales).abs() / scales).max() <= 2**-16


def test_where_there_is_nothing_but_zeros_the_scale_is_one_and_zeros_stay() -> None:
    scale, zero_point = grid_of(torch.zeros(1, 1), torch.zeros(1, 1), 8, False)
    assert scale.item() == 1.0 and not snap_(torch.zeros(3, 3), scale, zero_point, 8).any()


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 5])
def test_snapped_values_are_the_nearest_of_at_most_two_to_the_bits_levels(
    bits: int, symmetric: bool, granularity: str | int
) -> None:
    weight = random(7, 17)  # 5 does not divide 17: the last group is short
    weight[2, :6] = 0.0
    group = granularity if isinstance(granularity, int) else 0
    scale, zero_point = grid_of(*weight_range(weight, granularity), bits, symmetric)
    features = torch.arange(17)
    scale = spread(scale, features, group)
    zeros = None if symmetric else spread(zero_point, features, group)
    q = to_levels(weight, scale, zeros, bits)
    values = from_levels(q, scale, zeros)
    lowest, highest = levels(bits, symmetric)
    every = torch.arange(lowest, highest + 1).view(-1, 1, 1)
    all_values = from_levels(every.float(), scale, zeros)  # [levels, 7, 17]
    distance = (all_values - weight).abs().amin(0)
    torch.testing.assert_close((values - weight).abs(), distance)
    assert q.min() >= lowest and q.max() <= highest and torch.equal(q, q.round())
    assert torch.equal(snap_(weight.clone(), scale, zeros, bits), values)
    assert not values[2, :6].any() and off_grid(values, scale, zeros, bits) == 0
    moved = values.clone()
    moved[0, 0] += 0.3 * scale[0, 0]
    assert off_grid(moved, scale, zeros, bits) == 1


def test_an_affine_grid_spans_the_range_and_holds_zero_even_where_the_range_does_not() -> None:
    low, high = torch.tensor([0.5, -3.0, -1.0]), torch.tensor([4.0, -1.0, 2.0])
    scale, zero_point = affine_grid(low, high, 8)
    torch.testing.assert_close(scale * 255, torch.tensor([4.0, 3.0, 3.0]), rtol=1e-4, atol=0)
    assert zero_point.tolist() == [0, 255, 85]


def test_channels_and_groups_have_ranges_of_their_own() -> None:
    weight = random(4, 6, 3, 3)
    low, high = weight_range(weight, "channel")
    assert torch.equal(high.flatten(), weight.flatten(1).amax(1)) and low.shape == (4, 1, 1, 1)
    low, high = weight_range(weight, 4)
    assert low.shape == (4, 2, 1, 1)
    assert torch.equal(low[:, 1].flatten(), weight[:, 4:].flatten(1).amin(1))
