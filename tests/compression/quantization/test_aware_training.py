"""Quantization-aware training: when it begins, what the model computes with, what learns, what is delivered."""

from typing import Any

import pytest
import torch
from forgepress.compression.pruning.network_surgery import NetworkSurgery
from forgepress.compression.quantization.aware_training import AwareTraining
from forgepress.compression.quantization.grid import grid_of, snap_, weight_range
from forgepress.compression.quantization.modules import Quantized, quantized_layers
from forgepress.errors import ConfigError, NoOpError
from forgepress.tests.compression.quantization.small import (
    FEATURES,
    Training,
    convolutions,
    network,
    rows,
)
from torch import Tensor, nn

STEPS = 12


def on_grid(training: Training) -> list[bool]:
    """Whether each layer's working weight is exactly on the grid of some range of its own channels."""
    weights = [layer.weight.detach() for layer in quantized_layers(training.model).values()]
    return [torch.equal(snapped(weight), weight) for weight in weights]


def snapped(weight: Tensor, bits: int = 8) -> Tensor:
    scale, _ = grid_of(*weight_range(weight, "channel"), bits, True)
    return snap_(weight.clone(), scale, None, bits)


def test_before_begin_nothing_is_quantized_and_from_that_step_on_everything_is() -> None:
    plain, training = network(), Training(network(), [AwareTraining(begin=5)], steps=STEPS)
    reference = Training(plain, [], steps=STEPS)
    quantizers = [layer.input_quantizer for layer in quantized_layers(training.model).values()]
    for step in range(1, STEPS + 1):
        ours, floats = training.step(*rows(step)), reference.step(*rows(step))
        if step < 5:
            assert ours == floats and not any(q.enabled for q in quantizers if q is not None)
            assert [int(q.steps) for q in quantizers if q is not None] == [step] * 3  # warming up
        else:
            assert ours != floats and all(q.enabled for q in quantizers if q is not None)
        # the step after which the next one computes on grids
        assert on_grid(training) == [step >= 4] * 3


def test_the_optimizer_moves_dense_weights_with_the_gradient_taken_at_the_grid() -> None:
    model = network()
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    training = Training(model, [AwareTraining(activations="none")], steps=STEPS, lr=0.1)
    working = network()
    for step in range(1, 4):
        with torch.no_grad():
            for name, parameter in working.named_parameters():
                parameter.copy_(snapped(dense[name]) if name.endswith("weight") else dense[name])
        x, y = rows(step)
        loss = nn.functional.cross_entropy(working(x), y)
        gradients = torch.autograd.grad(loss, list(working.parameters()))
        for name, gradient in zip(dense, gradients, strict=True):
            dense[name] -= 0.1 * gradient
        training.step(x, y)
    for weight in training.chain.run.all_weights:
        torch.testing.assert_close(weight.dense, dense[weight.name])
        if len(weight.shape) == 2:
            torch.testing.assert_close(weight.local, snapped(dense[weight.name]))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_delivered_computes_as_at_the_end_of_training_with_few_levels(
    bits: int, granularity: str | int, symmetric: bool
) -> None:
    settings: dict[str, Any] = {
        "weight_bits": bits,
        "edge_bits": bits,
        "granularity": granularity,
        "symmetric_weights": symmetric,
    }
    training = Training(network(), [AwareTraining(**settings)], steps=STEPS)
    training.steps(STEPS)
    x, _ = rows(99)
    before = training.model(x)
    (record,) = training.deliver()
    assert torch.equal(training.model(x), before)
    assert record["grids"] == ["0.weight", "2.weight", "4.weight"]
    for layer in quantized_layers(training.model).values():
        assert layer.weights_off_grid() == 0
        assert layer.integer_weight().unique().numel() <= 2**bits
    fresh = network(seed=5)  # replayed from the record, then loaded
    AwareTraining(**settings).prepare(fresh)
    AwareTraining(**settings).rebuild(fresh, record)
    fresh.load_state_dict(training.model.state_dict())
    assert torch.equal(fresh(x), before)


def test_one_step_in_eight_pieces_is_the_step_in_one() -> None:
    whole, pieces = (
        Training(network(), [AwareTraining(activations="learned")], steps=STEPS, pieces=n) for n in (1, 8)
    )
    whole.steps(6)
    pieces.steps(6)
    for ours, theirs in zip(whole.model.buffers(), pieces.model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    for ours, theirs in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_pruned_weights_stay_zero_on_the_grid_and_return_only_by_surgery() -> None:
    surgery = NetworkSurgery(sparsity=0.6, every=1, stop=8)
    training = Training(network(), [surgery, AwareTraining(weight_bits=4)], steps=STEPS)

    def check(step: int) -> None:
        masks = training.chain.run.buffers[("0.pruning.network_surgery", "mask")]
        for weight in training.chain.run.weights():
            assert not weight.local[~masks[weight.name]].any()

    training.steps(STEPS, each=check)
    training.deliver()
    weights = [layer.weight for layer in quantized_layers(training.model).values()]
    zeros, count = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros >= round(0.6 * count)


def test_learned_step_sizes_move_and_clipped_weights_get_no_gradient() -> None:
    settings: dict[str, Any] = {
        "weight_bits": 2,
        "edge_bits": 2,
        "step_size": "learned",
        "activations": "learned",
    }
    training = Training(network(), [AwareTraining(**settings)], steps=STEPS)
    training.steps(2)
    scales = training.chain.run.buffers[("0.quantization.aware_training", "scale")]
    first = {name: scale.clone() for name, scale in scales.items()}
    inputs = [layer.input_quantizer.scale for layer in quantized_layers(training.model).values()]  # pyright: ignore
    before = [scale.clone() for scale in inputs]
    training.steps(STEPS - 2)
    assert all(not torch.equal(first[name], scales[name]) for name in first)
    assert all(not torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    before_delivery = training.model(rows(99)[0])
    training.deliver()
    assert torch.equal(training.model(rows(99)[0]), before_delivery)
    names = [name for name, _ in training.model.named_buffers()]
    assert not [name for name in names if "pull" in name]  # what only training needs is gone


def test_the_first_and_last_layer_have_bits_of_their_own_or_stay_float() -> None:
    model = network()
    AwareTraining(weight_bits=2).prepare(model)
    assert [layer.weight_bits for layer in quantized_layers(model).values()] == [8, 2, 8]
    model = network()
    technique = AwareTraining(weight_bits=4, edge_bits=32)
    technique.prepare(model)
    assert list(quantized_layers(model)) == ["2"] and technique.matched(model) == ["2.weight"]


def test_tied_layers_share_one_grid() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.tokens, self.middle = nn.Embedding(9, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.middle(self.tokens(x))).mean(1)

    training = Training(Tied(), [AwareTraining()], steps=3)
    for _ in range(3):
        training.step(torch.randint(0, 9, (8, 4)), torch.randint(0, 9, (8,)))
    (record,) = training.deliver()
    assert record["grids"] == ["tokens.weight", "middle.weight"]
    tokens, head = training.model.tokens, training.model.head
    assert isinstance(tokens, Quantized) and isinstance(head, Quantized)
    assert tokens.weight is head.weight and torch.equal(tokens.integer_weight(), head.integer_weight())


def test_normalisations_freeze_and_fold_and_the_levels_stay() -> None:
    technique = AwareTraining(weight_bits=4, edge_bits=4, freeze=8, activations="none")
    training = Training(convolutions(), [technique], steps=STEPS)
    norms = [m for m in training.model.modules() if isinstance(m, nn.BatchNorm2d)]
    averages: dict[int, list[Tensor]] = {}

    def note(step: int) -> None:
        averages[step] = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]

    training.steps(STEPS, 1, 8, 8, each=note)
    for norm in range(len(norms)):
        assert not torch.equal(averages[7][norm], averages[8][norm])
        assert torch.equal(averages[8][norm], averages[STEPS][norm])
    training.model.eval()
    x, _ = rows(99, 1, 8, 8)
    before = training.model(x)
    (record,) = training.deliver()
    assert record["folded"] == [["0", "1"], ["3", "4"]]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in training.model.modules())
    torch.testing.assert_close(training.model(x), before, rtol=1e-3, atol=1e-4)
    fresh = convolutions(seed=3)
    technique.prepare(fresh)
    technique.rebuild(fresh, record)
    fresh.load_state_dict(training.model.state_dict())
    assert torch.equal(fresh.eval()(x), training.model(x))


def test_a_layer_that_stays_float_stops_the_run() -> None:
    training = Training(network(), [AwareTraining()], steps=STEPS)
    training.steps(3)
    training.chain.demand()
    layer = training.model.get_submodule("2")
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.add_(1e-4)
    with pytest.raises(NoOpError, match="bits a weight 8 but the model has"):
        training.chain.demand()


def test_a_layer_whose_inputs_are_never_seen_stops_the_run() -> None:
    model = network()
    model.aside = nn.Linear(3, 3)
    training = Training(model, [AwareTraining()], steps=STEPS)
    model.forward = lambda input: nn.Sequential(*list(model)[:5])(input)
    training.steps(3)
    with pytest.raises(NoOpError, match="inputs seen"):
        training.chain.demand()


def test_what_cannot_be_quantized_is_refused_by_name() -> None:
    model = network()
    model.table = nn.Parameter(torch.zeros(3, FEATURES))
    with pytest.raises(ConfigError, match=r"table can not be quantized.*'!table'"):
        AwareTraining().prepare(model)
    AwareTraining(match=("weights", "!table")).prepare(model)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="step_size=learned"):
        AwareTraining(step_size="learned", symmetric_weights=False)
    with pytest.raises(ValueError, match="granularity=1"):
        AwareTraining(granularity=1)
    training = Training(network(), [AwareTraining(begin=STEPS + 1)], steps=STEPS)
    with pytest.raises(ConfigError, match="begin"):
        training.steps(1)
