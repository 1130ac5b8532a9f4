"""One pass and several: the same values, for every size, shape and oddity."""

import pytest
import torch
from forgepress.compression import fused
from forgepress.compression.quantization.activations import ActivationQuantizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

if fused.library() is None:
    pytest.skip("no C compiler here", allow_module_level=True)

drawn = settings(max_examples=40, deadline=None, derandomize=True)
SIZES = st.integers(1, 70)


def without(function, *given_):
    """What `function` gives where there is no compiler."""
    found, fused.library = fused.library, lambda: None
    try:
        return function(*given_)
    finally:
        fused.library = found


def values(rows: int, width: int, seed: int) -> Tensor:
    """Some of them halves of a step, ends, zeros, and far beyond any grid."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    odd = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, 127.5, -128.0, 1e30, -1e30, torch.inf, -torch.inf])
    place = torch.randint(0, 3 * len(odd), x.shape, generator=generator)
    return torch.where(place < len(odd), odd[place.clamp(max=len(odd) - 1)], x * 20)


def made(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """The calls of one compiled function, as they come."""
    calls, library = [], fused.library()

    class Watched:
        def __getattr__(self, attribute: str):
            if attribute == f"forgepress_{name}":
                calls.append(1)
            return getattr(library, attribute)

    monkeypatch.setattr(fused, "library", Watched)
    return calls


@drawn
@given(SIZES, SIZES, st.integers(0, 9))
def test_sums_and_slopes_are_torchs(rows: int, width: int, seed: int) -> None:
    x = values(rows, width, seed).clamp(-1e6, 1e6)
    wanted = torch.stack([x.double().abs().sum(), x.double().square().sum()]).float()
    assert torch.equal(fused.sums(x), wanted) or torch.allclose(fused.sums(x), wanted, rtol=1e-7)
    torch.testing.assert_close(without(fused.sums, x), wanted)
    for l1, l2 in ((0.3, 0.0), (0.0, 0.3), (0.25, 0.75), (-0.5, 0.0)):
        found = fused.slopes(x, l1, l2)
        torch.testing.assert_close(found, l1 * x.sign() + l2 * x)
        torch.testing.assert_close(found, without(fused.slopes, x, l1, l2))


@drawn
@given(SIZES, SIZES, st.integers(0, 9))
def test_masks_and_splices_are_torchs(rows: int, width: int, seed: int) -> None:
    x = values(rows, width, seed)
    mask = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    finite = x.clamp(-1e30, 1e30)
    assert torch.equal(fused.masked_(finite.clone(), mask), without(fused.masked_, finite.clone(), mask))
    for low, high in ((0.5, 1.5), (0.1, 20.0), (2.5, 2.5)):
        one, several = fused.splice_(mask.clone(), x, low, high), mask.clone()
        assert torch.equal(one, without(fused.splice_, several, x, low, high))
        assert torch.equal(one, (x.abs() > high) | ((x.abs() > low) & mask))


@drawn
@given(SIZES, SIZES, st.integers(0, 9), st.sampled_from([(-127, 127), (-7, 7), (-2, 1), (0, 255)]))
@example(1, 1, 0, (-2, 1))
def test_values_snap_to_the_same_grid(rows: int, width: int, seed: int, ends: tuple[int, int]) -> None:
    x = values(rows, width, seed)
    each = torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed)) + 0.01
    for scale in (each, each[:1], each[0, 0], torch.ones(rows, 1)):
        assert torch.equal(
            fused.snap_(x.clone(), scale, *ends), without(fused.snap_, x.clone(), scale, *ends)
        )


@drawn
@given(SIZES, SIZES, st.integers(0, 9), st.sampled_from([(-128, 127), (0, 255), (-100, 155)]))
def test_inputs_are_rounded_and_looked_through_at_once(
    rows: int, width: int, seed: int, ends: tuple[int, int]
) -> None:
    x = values(rows, width, seed)
    found = fused.rounded(x, width, 0.5, *ends)
    assert found is not None
    y, low, high = found
    assert torch.equal(y, (x / 0.5).round().clamp(*ends) * 0.5)
    assert torch.equal(low, x.amin(1)) and torch.equal(high, x.amax(1))


def test_a_value_that_is_no_number_is_seen() -> None:
    x = torch.zeros(3, 70)
    x[1, 69] = torch.nan
    found = fused.rounded(x, 70, 0.5, -5, 5)
    assert found is not None
    y, low, high = found
    assert y[1].isnan().sum() == 1 and low.isnan().tolist() == high.isnan().tolist() == [False, True, False]


def test_what_was_written_to_is_known_to_have_changed() -> None:
    x, mask = torch.randn(4, 6), torch.ones(4, 6, dtype=torch.bool)
    seen = x._version, mask._version
    fused.masked_(x, mask)
    fused.splice_(mask, x, 0.1, 0.2)
    assert (x._version, mask._version) == (seen[0] + 1, seen[1] + 1)
    fused.snap_(x, torch.ones(1, 1), -7, 7)
    assert x._version == seen[0] + 2


def test_what_is_no_plain_float32_goes_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = made(monkeypatch, "masked")
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1:3] = False
    for x in (torch.randn(4, 6).bfloat16(), torch.randn(6, 4).t(), torch.randn(4, 6).double()):
        assert torch.equal(fused.masked_(x.clone(memory_format=torch.preserve_format), mask), x * mask)
    assert not calls
    fused.masked_(torch.randn(4, 6), mask)
    assert calls


def test_a_layers_inputs_take_one_pass_and_come_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = made(monkeypatch, "rounded")

    def through(x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        quantizer = ActivationQuantizer()
        quantizer.set_range(torch.tensor(-1.0), torch.tensor(2.0))
        quantizer.numbers = float(quantizer.scale), int(quantizer.zero_point)
        quantizer.enabled = quantizer.observing = True
        x = x.clone().requires_grad_()
        y = quantizer(x)
        y.square().sum().backward()
        assert x.grad is not None
        return y.detach(), x.grad, quantizer.seen

    for x in (torch.randn(5, 80), torch.randn(40, 80) / 4, torch.randn(3, 4, 9, 9)):
        for one, several in zip(through(x), without(through, x), strict=True):
            assert torch.equal(one, several)
    assert len(calls) == 3
