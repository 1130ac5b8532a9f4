"""Histograms add up however the values were dealt out, and tell ranges as the values themselves would."""

import pytest
import torch
from forgepress.compression.quantization.grid import grid_of, snap_
from forgepress.compression.quantization.histogram import (
    BINS,
    centers,
    histogram,
    least_error_range,
    percentile_range,
)


def values(count: int = 50_000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(3)) * 2 + 0.3


def test_a_histogram_of_parts_adds_up_to_that_of_the_whole() -> None:
    x = values()
    parts = torch.stack([histogram(part) for part in x.tensor_split([1, 17, 4000])]).sum(0)
    assert torch.equal(parts, histogram(x)) and int(histogram(x).sum()) == len(x)


def test_every_value_lies_in_a_bin_whose_middle_is_near() -> None:
    x = torch.tensor([1e-6, 0.3, -0.3, 1.0, -7.5, 900.0, -900.0])
    for value in x:
        middle = centers()[histogram(value.view(1)).argmax()]
        assert abs(float(middle) / float(value) - 1) < 1 / 64
    zeros = histogram(torch.tensor([0.0, -0.0, 1e-30, -1e-30]))
    assert (centers()[zeros.nonzero()] == 0).all() and len(zeros) == BINS


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_are_those_of_the_values(percentile: float) -> None:
    x = values()
    low, high = percentile_range(histogram(x), x.min(), x.max(), percentile)
    tail = (1 - percentile / 100) / 2
    torch.testing.assert_close(low, x.quantile(tail), rtol=0.03, atol=0)
    torch.testing.assert_close(high, x.quantile(1 - tail), rtol=0.03, atol=0)


def test_all_of_it_is_the_whole_range() -> None:
    x = values(1000)
    assert percentile_range(histogram(x), x.min(), x.max(), 100.0) == (x.min(), x.max())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_least_error_is_that_of_the_values_themselves(bits: int, symmetric: bool) -> None:
    x = values()
    x[:3] = 60.0  # far outside: to give them up pays at 4 bits

    def error(share: float) -> float:
        scale, zero_point = grid_of(x.min() * share, x.max() * share, bits, symmetric)
        return float((snap_(x.clone(), scale, None if symmetric else zero_point, bits) - x).square().mean())

    low, high = least_error_range(histogram(x), x.min(), x.max(), bits, symmetric)
    chosen = error(float(high / x.max()))
    assert chosen <= 1.02 * min(error(percent / 100) for percent in range(20, 101))
    torch.testing.assert_close(low / x.min(), high / x.max())
