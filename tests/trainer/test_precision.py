"""Precision: what autocast computes in, and a loss scale that falls at overflow and grows after good steps."""

import json

import pytest
import torch
from forgepress.errors import ConfigError, DivergenceError
from forgepress.trainer import precision
from forgepress.trainer.config import RunConfig
from forgepress.trainer.precision import LossScaler, autocast, tiny_as_zero
from forgepress.trainer.preflight import check


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")]
)
def test_products_run_in_the_precision_and_weights_stay_float32(precision, dtype):
    linear = torch.nn.Linear(3, 2)
    with autocast(precision):
        assert linear(torch.ones(1, 3)).dtype == getattr(torch, dtype)
    assert linear.weight.dtype == torch.float32


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bf16_that_is_emulated_is_said_at_check(has_instructions, monkeypatch):
    monkeypatch.setattr(precision, "_computes_bf16", lambda: has_instructions)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked, slow in (("bf16", not has_instructions), ("fp32", False)):
        config = RunConfig.model_validate(
            {"name": "x", "model": "lenet_300_100", "data": {"source": "digits", "batch": 30},
             "precision": asked, "phases": [{"name": "train", "steps": 2}]}
        )  # fmt: skip
        notes = check(config, 1).notes
        assert any("emulated" in note and "precision=fp32" in note for note in notes) is slow


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="'fp8' is not known; want one of fp32, bf16, fp16"):
        autocast("fp8")


def test_scaling_and_unscaling_leave_gradients_as_they_were():
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    scaler = LossScaler(factor=1024.0)
    scaler.scale((weight * torch.tensor([3.0, 0.5])).sum()).backward()
    assert weight.grad is not None and weight.grad.tolist() == [3072.0, 512.0]
    found = scaler.unscale([weight.grad, None, torch.empty(0, 4)])
    assert weight.grad.tolist() == [3.0, 0.5] and found.item() == 0.0 and found.shape == ()


def test_a_gradient_below_half_precision_survives_by_the_scale():
    tiny = torch.tensor(1e-9)
    assert tiny.half().item() == 0.0
    scaler = LossScaler()
    scaled = scaler.scale(tiny).half().float()
    scaler.unscale([scaled])
    assert scaled.item() == pytest.approx(1e-9, rel=1e-2)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_one_value_that_is_not_finite_is_found(bad):
    gradients = [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.tensor([1.0, bad])]
    assert LossScaler().unscale(gradients).item() == 1.0
    assert LossScaler().unscale(gradients[:2]).item() == 0.0
    assert LossScaler().unscale([]).item() == 0.0


def test_the_factor_falls_at_overflow_and_grows_after_good_steps_in_a_row():
    scaler = LossScaler(factor=8.0, interval=3)
    seen = []
    for found in (False, False, True, False, False, False, False, True, True):
        scaler.update(found)
        seen.append(scaler.factor)
    assert seen == [8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 8.0, 4.0, 2.0]


def test_a_resumed_scaler_goes_on_the_same():
    one = LossScaler(factor=8.0, interval=3)
    one.update(False)
    one.update(False)
    other = LossScaler(interval=3)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for scaler in (one, other):
        scaler.update(False)
    assert one.factor == other.factor == 16.0 and one.state_dict() == other.state_dict()


def test_overflow_at_the_smallest_factor_stops_the_run():
    scaler = LossScaler(factor=LossScaler.smallest)
    with pytest.raises(DivergenceError, match="use precision: bf16"):
        scaler.update(True)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="backoff=1"):
        LossScaler(backoff=1.0)


def test_numbers_too_small_for_float32_are_zero_inside_the_block_and_not_after():
    tiny = torch.full((64,), 1e-40)
    with tiny_as_zero():
        with tiny_as_zero():
            assert (tiny * 1.0 == 0.0).all()
        assert (tiny * 1.0 == 0.0).all()  # the inner block gives back what it found
    assert (tiny * 1.0 != 0.0).all()
