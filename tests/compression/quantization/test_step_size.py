"""Learned step sizes: the paper's derivative, against autograd through a straight-through rounding."""

import pytest
import torch
from forgepress.compression.quantization.grid import levels, snap_
from forgepress.compression.quantization.rounding import rounded
from forgepress.compression.quantization.step_size import first_step_size, follow_, pulls
from torch import Tensor


def paper(values: Tensor, scale: Tensor, zero_point: int, ends: tuple[int, int]) -> Tensor:
    """Esser et al., equations 1 and 2, differentiable: rounding passes gradients on, clamping as it is."""
    ratio = (values / scale).clamp(ends[0] - zero_point, ends[1] - zero_point)
    return (ratio + (ratio.round() - ratio).detach()) * scale


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_pull_on_weights_is_the_derivative_by_the_logarithm(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    dense, grad = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    scale = torch.tensor(1.1 / levels(bits, True)[1], requires_grad=True)  # clips some
    (paper(dense, scale, 0, levels(bits, True)) * grad).sum().backward()
    lowest, highest = levels(bits, True)
    step = scale.detach()
    inside = ((dense >= lowest * step) & (dense <= highest * step)).float()
    assert 0 < int(inside.sum()) < 50
    found = pulls(dense, snap_(dense.clone(), step, None, bits), grad, inside).sum()
    assert scale.grad is not None
    torch.testing.assert_close(found, scale.grad * step, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("zero_point", [0, 100])
def test_the_pull_on_inputs_is_the_derivative_by_the_logarithm(zero_point: int) -> None:
    ends = (0, 255) if zero_point else (-127, 127)
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    x = x + 0.5 * x.abs().max() * x.sign() * (x.abs() > 2)  # beyond the ends by more than half a step
    scale = torch.tensor(1.5 / 127, requires_grad=True)
    grad = torch.randn(4, 30, generator=torch.Generator().manual_seed(2))
    keep = ((x / scale.detach()).abs() - 127).abs() > 1  # no value within half a step of an end
    (paper(x[keep], scale, zero_point, ends) * grad[keep]).sum().backward()
    taken: list[Tensor] = []
    y = rounded(x[keep], scale.detach(), torch.tensor(zero_point, dtype=torch.int32), ends, taken.append)
    y.backward(grad[keep])  # x wants no gradient itself: a first layer's input
    assert scale.grad is not None
    torch.testing.assert_close(taken[0], scale.grad * scale.detach(), rtol=1e-3, atol=1e-4)


def test_step_sizes_go_against_their_pull_however_large_it_is() -> None:
    moved = []
    for factor in (1.0, 1e-6):
        scale, mean, square = torch.tensor([0.5, 0.5, 0.5]), torch.zeros(3), torch.zeros(3)
        for count in range(1, 51):
            pull = torch.tensor([1.0, -1.0, 0.0]) * factor
            follow_([scale], [pull], [mean], [square], count=count, progress=0.0)
        moved.append(scale.clone())
    assert moved[0][0] < 0.5 < moved[0][1] and moved[0][2] == 0.5
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=0)


def test_a_pull_that_is_not_finite_moves_nothing() -> None:
    scale = torch.tensor(0.5)
    follow_(
        [scale], [torch.tensor(float("inf"))], [torch.zeros(())], [torch.zeros(())], count=1, progress=0.0
    )
    assert float(scale) == 0.5


def test_the_first_step_size_is_the_papers_but_never_beyond_the_range() -> None:
    largest, mean = torch.tensor(4.0), torch.tensor(0.8)
    torch.testing.assert_close(first_step_size(largest, mean, 2), torch.tensor(1.6), rtol=1e-4, atol=0)
    torch.testing.assert_close(first_step_size(largest, mean, 8), torch.tensor(4.0 / 127), rtol=1e-4, atol=0)
