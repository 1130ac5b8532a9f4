"""Quantization after training: nothing moves until the last step, ranges are those of what was seen."""

import pytest
import torch
from forgepress.compression.quantization.modules import quantized_layers
from forgepress.compression.quantization.post_training import PostTraining
from forgepress.errors import NoOpError
from forgepress.tests.compression.quantization.small import Training, convolutions, network, rows
from torch import Tensor, nn

STEPS = 6


def calibrate(model: nn.Module, technique: PostTraining, *shape: int, steps: int = STEPS) -> Training:
    """A phase that only looks, as the trainer runs it."""
    training = Training(model, [technique], steps=STEPS)
    model.eval()
    for step in range(1, steps + 1):
        training.chain.before_step()
        with torch.no_grad():
            model(rows(step, *shape)[0])
        training.chain.after_step()
    return training


def inputs_of(model: nn.Sequential, layer: int, *shape: int) -> list[Tensor]:
    """What flows into that layer in each step, in float."""
    with torch.no_grad():
        return [model.eval()[:layer](rows(step, *shape)[0]) for step in range(1, STEPS + 1)]


def test_while_calibrating_the_model_is_the_float_one_and_after_the_last_step_it_is_quantized() -> None:
    model, reference = network(), network()
    training = calibrate(model, PostTraining(), steps=STEPS - 1)
    x, _ = rows(99)
    assert not training.chain.trains and torch.equal(model(x), reference(x))
    training.chain.before_step()
    model(rows(STEPS)[0])
    training.chain.after_step()
    after = model(x)
    assert not torch.equal(after, reference(x))
    torch.testing.assert_close(after, reference(x), rtol=0, atol=0.05)
    lines = {line.quantity: line for line in training.chain.demand()["0.quantization.post_training"]}
    assert lines["bits a weight"].achieved == 8.0
    training.deliver()
    assert torch.equal(model(x), after)


def test_min_max_ranges_are_those_of_all_that_was_seen() -> None:
    seen = torch.cat(inputs_of(network(), 2))
    training = calibrate(network(), PostTraining())
    quantizer = quantized_layers(training.model)["2"].input_quantizer
    assert quantizer is not None and int(quantizer.steps) == STEPS
    assert float(quantizer.low) == 0.0 and float(quantizer.high) == float(seen.max())  # after a ReLU


def test_moving_averages_are_means_over_the_first_steps() -> None:
    seen = inputs_of(network(), 2)
    training = calibrate(network(), PostTraining(activations="moving_average"))
    quantizer = quantized_layers(training.model)["2"].input_quantizer
    assert quantizer is not None
    torch.testing.assert_close(quantizer.high, torch.stack([x.max() for x in seen]).mean())


def test_percentile_ranges_leave_out_the_tails() -> None:
    training = calibrate(network(), PostTraining(activations="percentile", percentile=99.0))
    quantizer = quantized_layers(training.model)["0"].input_quantizer
    seen = torch.cat([rows(step)[0] for step in range(1, STEPS + 1)]).flatten()
    assert quantizer is not None and quantizer.counts is not None
    assert int(quantizer.counts.sum()) == seen.numel()
    torch.testing.assert_close(quantizer.low, seen.quantile(0.005), rtol=0.03, atol=0)
    torch.testing.assert_close(quantizer.high, seen.quantile(0.995), rtol=0.03, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
def test_the_searched_range_of_weights_has_no_more_error_than_the_whole(
    symmetric: bool, granularity: str | int
) -> None:
    reference = network()
    errors: dict[str, list[float]] = {}
    for weight_range in ("min_max", "mse"):
        technique = PostTraining(
            weight_bits=2,
            edge_bits=2,
            granularity=granularity,  # pyright: ignore[reportArgumentType]
            symmetric_weights=symmetric,
            activations="none",
            weight_range=weight_range,  # pyright: ignore[reportArgumentType]
        )
        training = calibrate(network(), technique)
        training.deliver()
        layers = quantized_layers(training.model)
        errors[weight_range] = [
            float((layer.weight - reference.get_submodule(name).weight).square().sum().detach())  # pyright: ignore
            for name, layer in layers.items()
        ]
    assert all(a <= b for a, b in zip(errors["mse"], errors["min_max"], strict=True))
    assert sum(errors["mse"]) < 0.95 * sum(errors["min_max"])


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
def test_normalisations_are_folded_whatever_the_granularity(granularity: str | int) -> None:
    technique = PostTraining(granularity=granularity, activations="none")  # pyright: ignore[reportArgumentType]
    model, reference = convolutions(), convolutions()
    training = calibrate(model, technique, 1, 8, 8)
    x, _ = rows(99, 1, 8, 8)
    before = model(x)
    (record,) = training.deliver()
    assert record["folded"] == [["0", "1"], ["3", "4"]]
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model(x), reference.eval()(x), rtol=0, atol=0.2)
    fresh = convolutions(seed=4)
    technique.prepare(fresh)
    technique.rebuild(fresh, record)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), model(x))


def test_two_bits_with_negative_factors_keep_their_normalisation() -> None:
    """The level -2 has no opposite: folding a negative factor in would change what the layer computes."""
    technique = PostTraining(weight_bits=2, edge_bits=2, activations="none")
    model = convolutions()
    training = calibrate(model, technique, 1, 8, 8)
    x, _ = rows(99, 1, 8, 8)
    before = model(x)
    (record,) = training.deliver()
    assert record["folded"] == [] and torch.equal(model(x), before)


def test_dynamic_inputs_need_no_ranges() -> None:
    training = calibrate(network(), PostTraining(activations="dynamic"))
    x, _ = rows(99)
    training.deliver()
    torch.testing.assert_close(training.model(x), network()(x), rtol=0, atol=0.05)
    assert not [name for name, _ in training.model.named_buffers() if "input_quantizer" in name]


def test_a_layer_that_nothing_flows_into_is_named_at_delivery() -> None:
    training = calibrate(network(), PostTraining())
    layer = quantized_layers(training.model)["2"]
    assert layer.input_quantizer is not None
    layer.input_quantizer.steps.zero_()
    with pytest.raises(NoOpError, match="inputs seen"):
        training.chain.demand()
    training.chain.finish()
    with pytest.raises(NoOpError, match="nothing has flowed into 2"):
        training.techniques[0].finalize(training.model, {})


def test_percentiles_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="percentile=12"):
        PostTraining(percentile=12.0)
