"""Network slimming: where it pulls, which channels go, and what is left, against the original with those silenced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forgepress.compression import Chain, Run, weights_of
from forgepress.compression.pruning.network_slimming import NetworkSlimming
from forgepress.errors import ConfigError
from forgepress.tests.compression.pruning.nets import convolutions, mlp, rows, shaken, state_for
from torch import Tensor, nn

SHAPES: dict[Any, tuple[int, ...]] = {mlp: (6,), convolutions: (2, 5, 5)}


def step(technique: NetworkSlimming, model: nn.Module, lr: float) -> dict[str, Tensor]:
    """One step of an optimizer that moves nothing, with zero gradients; returns the gradients."""
    weights = weights_of(dict(model.named_parameters()))
    chain = Chain([technique], Run(weights, steps=1, modules=dict(model.named_modules())))
    chain.set_up()
    chain.before_step(lr)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    chain.after_backward()
    chain.before_update()
    chain.after_step()
    chain.demand()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_gradient_form_adds_the_sign_of_batchnorms_scales_and_nothing_else() -> None:
    model = mlp()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = step(NetworkSlimming(strength=0.25), model, lr=0.5)
    for name, grad in grads.items():
        expected = 0.25 * before[name].sign() if name in ("bn1.weight", "bn2.weight") else torch.zeros(())
        assert torch.equal(grad, expected.expand_as(grad)), name
        assert torch.equal(before[name], model.get_parameter(name))


def test_the_proximal_form_shrinks_scales_by_learning_rate_times_strength_and_stops_at_zero() -> None:
    model = mlp()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = step(NetworkSlimming(strength=0.8, form="proximal"), model, lr=0.5)
    assert not any(grad.any() for grad in grads.values())
    for name in ("bn1.weight", "bn2.weight"):
        old, new = before.pop(name), model.get_parameter(name)
        torch.testing.assert_close(new, old.sign() * (old.abs() - 0.4).clamp_min(0.0))
        assert (new == 0).any() and (new != 0).any()
    assert all(torch.equal(old, model.get_parameter(name)) for name, old in before.items())


@pytest.mark.parametrize("make", [mlp, convolutions])
def test_what_is_left_computes_what_the_original_does_with_the_smallest_scales_silenced(make: Any) -> None:
    model, silenced = make(), make()
    scales = torch.cat([model.bn1.weight, model.bn2.weight]).abs().detach()
    gone = scales.argsort()[: round(0.5 * len(scales))]
    with torch.no_grad():
        for norm, first in ((silenced.bn1, 0), (silenced.bn2, len(model.bn1.weight))):
            mine = gone[(gone >= first) & (gone < first + len(norm.weight))] - first
            norm.weight[mine] = 0.0
            norm.bias[mine] = 0.0  # ReLU then gives zeros
    record = NetworkSlimming(share=0.5, multiple=1).finalize(model, state_for(*SHAPES[make]))
    assert len(model.bn1.weight) + len(model.bn2.weight) == len(scales) - len(gone)
    x = rows(7, *SHAPES[make])
    torch.testing.assert_close(model(x), silenced(x))
    assert record["checks"][0]["achieved"] == len(gone) / len(scales)


def test_a_fresh_model_is_cut_in_the_same_places_from_the_record_alone() -> None:
    import json

    model, fresh = convolutions(), shaken(convolutions(), seed=9)
    record = json.loads(json.dumps(NetworkSlimming(multiple=2).finalize(model, state_for(2, 5, 5))))
    original = {name: t.clone() for name, t in fresh.state_dict().items()}
    NetworkSlimming(multiple=2).rebuild(fresh, record)
    for name, tensor in fresh.state_dict().items():
        expected = original[name]
        for dim, kept in record["kept"].get(name, {}).items():
            expected = expected.index_select(int(dim), torch.tensor(kept))
        assert torch.equal(tensor, expected), name
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(rows(3, 2, 5, 5)), model(rows(3, 2, 5, 5)))


def test_eighty_percent_of_each_layer_of_the_papers_mlp_leaves_a_hundred_and_sixty() -> None:
    from forgepress.trainer.models import build_model

    model = build_model("mlp").module
    with torch.no_grad():
        for scale in (model.bn1.weight, model.bn2.weight):
            scale.copy_(torch.rand(scale.shape, generator=torch.Generator().manual_seed(len(scale))))
        model.bn2.weight.mul_(1e-3)  # a global threshold would take all of these first
    record = NetworkSlimming(share=0.8, scope="uniform", multiple=1).finalize(model, state_for(784))
    assert [model.fc1.out_features, model.fc2.out_features] == [100, 60]
    before, after = record["removed"]["parameters"]
    assert before == 547_410 and after == sum(p.numel() for p in model.parameters())
    assert round(1 - after / before, 3) == 0.844  # table 3 of the paper
    assert record["removed"]["multiply_adds"] == [
        784 * 500 + 500 * 300 + 300 * 10,
        784 * 100 + 100 * 60 + 60 * 10,
    ]


@pytest.mark.parametrize("of", ["parameters", "multiply_adds"])
@pytest.mark.parametrize("share", [0.2, 0.55])
def test_the_share_of_parameters_or_multiply_adds_is_met_and_not_by_more_than_one_unit(
    of: Any, share: float
) -> None:
    model, smaller = convolutions(), convolutions()
    record = NetworkSlimming(share=share, of=of, multiple=1).finalize(model, state_for(2, 5, 5))
    before, after = record["removed"][of]
    assert before - after >= share * before
    one_less = share - 1e-9  # what one unit less would have brought lies below the share
    units = sum(old - new for old, new in record["groups"].values())
    NetworkSlimming(share=(units - 1) / 24, multiple=1).finalize(smaller, state_for(2, 5, 5))
    kept = [smaller.conv1.out_channels, smaller.conv2.out_channels]
    counts = {
        "parameters": sum(p.numel() for p in smaller.parameters()),
        "multiply_adds": 25 * 9 * 2 * kept[0] + 9 * 9 * kept[0] * kept[1] + 9 * kept[1] * 3,
    }
    assert 1 - counts[of] / before < one_less


def test_widths_stay_multiples() -> None:
    model = mlp()
    NetworkSlimming(share=0.4, multiple=4).finalize(model, state_for(6))
    assert model.fc1.out_features in (4, 8, 12, 16, 20) and model.fc2.out_features in (4, 8, 12)


def test_channels_that_are_added_up_go_together_by_their_mean_scale() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn1 = nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8)
            self.conv, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
            self.head = nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.stem(x))
            return self.head(x + self.bn2(self.conv(x))).mean((2, 3))

    model = Residual().eval()
    with torch.no_grad():
        model.bn1.weight.copy_(torch.tensor([9.0, 1.0, 5.0, 2.0, 8.0, 3.0, 7.0, 4.0]))
        model.bn2.weight.copy_(torch.tensor([-1.0, -8.0, 5.0, 9.0, 0.0, 6.0, 4.0, 4.0]))
    means = [5.0, 4.5, 5.0, 5.5, 4.0, 4.5, 5.5, 4.0]
    record = NetworkSlimming(share=0.5, multiple=1).finalize(model, state_for(2, 5, 5))
    assert record["kept"]["stem.weight"]["0"] == [i for i, mean in enumerate(means) if mean >= 5.0]
    assert model.conv.weight.shape == (4, 4, 1, 1) and model.head.weight.shape == (3, 4, 1, 1)


def test_only_scales_of_normalisation_layers_match_whatever_the_globs_say() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3), nn.PReLU(3))
    assert NetworkSlimming().matched(model) == ["1.weight"]
    assert NetworkSlimming(match="*").matched(model) == ["1.weight"]  # PReLU's weight is no scale
    assert NetworkSlimming().matched(mlp()) == ["bn1.weight", "bn2.weight"]
    assert NetworkSlimming(match=("*", "!bn2*")).matched(mlp()) == ["bn1.weight"]


def test_a_share_that_would_empty_layers_is_refused_before_the_first_step_and_at_the_end() -> None:
    technique, model = NetworkSlimming(share=0.8, most=0.5, multiple=1), mlp()
    with pytest.raises(ConfigError, match=r"share=0.8 of the removable units.*no more than 0.5 .*10 of 20"):
        technique.finalize(model, state_for(6))
    with pytest.raises(ConfigError, match=r"no more than 0.5"):
        technique.foretell(mlp().to("meta"), (torch.zeros(1, 6, device="meta"),))


def test_scales_that_no_removable_channel_carries_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()  # the scale of the outputs
    with pytest.raises(ConfigError, match=r"no channels with a scale of 1.weight can be removed"):
        NetworkSlimming().foretell(model, (torch.zeros(1, 4),))


def test_an_end_without_an_example_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="example input"):
        NetworkSlimming().finalize(mlp(), {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.0}, "share=1.0"),
        ({"share": 0.0}, "share=0.0"),
        ({"most": 1.0}, "most=1.0"),
        ({"multiple": 0}, "multiple=0"),
        ({"strength": 0.0}, "strength=0.0.*pruning.structured"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSlimming(**settings)
