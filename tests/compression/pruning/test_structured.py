"""Structured pruning: each score against its formula, each kind of unit on a net that has it, budgets and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forgepress.compression import Chain, Run, weights_of
from forgepress.compression.pruning._unit_statistics import ENERGY, TAYLOR
from forgepress.compression.pruning.structured import Structured
from forgepress.errors import ConfigError
from forgepress.tests.compression.pruning.nets import convolutions, mlp, rows, state_for
from forgepress.trainer.models import build_model
from torch import Tensor, nn


def kept_of(technique: Structured, model: nn.Module, *shape: int, **state: Any) -> dict[str, Any]:
    return technique.finalize(model, {**state_for(*shape), **state})["kept"]


def largest(scores: Tensor, count: int) -> list[int]:
    return scores.topk(count).indices.sort().values.tolist()


def watched(technique: Structured, model: nn.Module, batches: list[Tensor], **now: Any) -> dict[str, Any]:
    """Steps of an optimizer that moves nothing, loss = Σ outputs²; what the technique has gathered."""
    run = Run(
        weights_of(dict(model.named_parameters())), steps=len(batches), modules=dict(model.named_modules())
    )
    vars(run.now).update(now)
    chain = Chain([technique], run)
    chain.set_up()
    for batch in batches:
        chain.before_step()
        model.zero_grad()
        model(batch).square().sum().backward()
        chain.after_backward()
        chain.before_update()
        chain.after_step()
    model(100.0 * batches[0])  # evaluation must not count
    chain.finish()
    return {key: {n: t for n, (_, t) in chain.buffers(0, key).items()} for key in (TAYLOR, ENERGY)}


# ── scores


@pytest.mark.parametrize(("score", "norm"), [("l1", 1), ("l2", 2)])
def test_the_filters_of_smallest_norm_go(score: Any, norm: int) -> None:
    model, original = convolutions(), convolutions()
    technique = Structured(score=score, scope="uniform", share=0.5, multiple=1)
    kept = kept_of(technique, model, 2, 5, 5)
    for layer, left in (("conv1", 5), ("conv2", 7)):
        filters = original.get_parameter(f"{layer}.weight").flatten(1)
        expected = largest(torch.linalg.vector_norm(filters, norm, dim=1), left)
        assert kept[f"{layer}.weight"]["0"] == expected
    features = [9 * channel + place for channel in kept["conv2.weight"]["0"] for place in range(9)]
    assert kept["fc.weight"] == {"1": features}
    assert kept["bn2.running_mean"] == {"0": kept["conv2.weight"]["0"]}


def test_norms_of_layers_of_other_scales_are_compared_by_their_means() -> None:
    model, scaled = mlp(), mlp()
    with torch.no_grad():
        scaled.fc1.weight.mul_(1000.0)
    technique = Structured(share=0.4, multiple=1)
    assert kept_of(technique, model, 6) == kept_of(technique, scaled, 6)


def test_taylor_is_the_running_mean_of_the_squared_sum_of_weight_times_gradient() -> None:
    model = mlp().train()
    batches = [rows(8, 6), 2.0 * rows(8, 6)]
    gathered = watched(Structured(score="taylor"), model, batches)
    expected = {name: torch.zeros(len(model.get_parameter(name))) for name in gathered[TAYLOR]}
    assert set(expected) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    for batch in batches:
        model.zero_grad()
        model(batch).square().sum().backward()
        for name, mean in expected.items():
            weight = model.get_parameter(name)
            assert weight.grad is not None
            mean.mul_(0.98).add_(0.02 * (weight.detach() * weight.grad).sum(dim=1).square())
    for name, mean in expected.items():
        torch.testing.assert_close(gathered[TAYLOR][name].flatten(), mean)
    original = {name: mean.clone() for name, mean in expected.items()}
    kept = kept_of(Structured(score="taylor", share=0.5, multiple=1), model, 6, **gathered)
    together = torch.cat([original["fc1.weight"], original["fc2.weight"]])
    stay = set(largest(together, 16))  # one ranking, not normalised: how much the loss would change
    assert kept["fc1.weight"]["0"] == [i for i in range(20) if i in stay]
    assert kept["fc2.weight"]["0"] == [i for i in range(12) if 20 + i in stay]


def test_activation_is_the_energy_that_a_unit_brings_to_the_layer_that_reads_it() -> None:
    model = convolutions()
    batches = [rows(6, 2, 5, 5), rows(6, 2, 5, 5) ** 2]
    gathered = watched(Structured(score="activation"), model, batches)
    hidden = [model.relu2(model.bn2(model.conv2(model.relu1(model.bn1(model.conv1(x)))))) for x in batches]
    squares = torch.zeros(14 * 9)
    for x in hidden:
        squares = 0.98 * squares + 0.02 * x.detach().flatten(1).square().mean(dim=0)
    torch.testing.assert_close(gathered[ENERGY]["fc.weight"].flatten(), squares)
    brought = squares * model.fc.weight.detach().square().sum(dim=0)
    scores = brought.view(14, 9).sum(dim=1).sqrt()
    technique = Structured(score="activation", scope="uniform", share=0.5, multiple=1)
    kept = kept_of(technique, model, 2, 5, 5, **gathered)
    assert kept["conv2.weight"]["0"] == largest(scores, 7)


def test_padding_rows_do_not_count_in_activations() -> None:
    model, x = mlp(), rows(6, 6)
    valid = torch.tensor([True, True, False, True, False, True])
    padded = x.clone()
    padded[~valid] = 1e6
    there = watched(Structured(score="activation"), model, [padded], valid=valid)[ENERGY]
    alone = watched(Structured(score="activation"), model, [x[valid]])[ENERGY]
    assert set(alone) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    for name, means in alone.items():
        torch.testing.assert_close(there[name], means)


def test_scales_rank_channels_where_there_are_some() -> None:
    model, original = convolutions(), convolutions()
    kept = kept_of(Structured(score="scale", share=0.5, multiple=1, scope="uniform"), model, 2, 5, 5)
    assert kept["conv1.weight"]["0"] == largest(original.bn1.weight.detach().abs(), 5)
    with pytest.raises(ConfigError, match=r"score=scale says nothing about fc1 \(neurons\)"):
        Structured(score="scale").finalize(build_model("lenet_300_100").module, state_for(784))


def test_a_score_that_was_never_measured_is_an_error_and_not_a_random_choice() -> None:
    with pytest.raises(ConfigError, match="no gradient of what makes it was seen"):
        Structured(score="taylor").finalize(mlp(), state_for(6))


# ── kinds of units


def gpt(layers: int = 2) -> nn.Module:
    spec = {"name": "gpt", "layers": layers, "heads": 4, "width": 16, "vocabulary": 11, "context": 8}
    model = build_model(spec).module
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return model.eval()


TOKENS = {"example": {"0": torch.zeros(1, 8, dtype=torch.int64)}}


def test_heads_go_as_wholes_and_what_is_left_is_the_model_without_their_outputs() -> None:
    model, silenced = gpt(), gpt()
    technique = Structured(kinds=("heads",), share=0.5)
    record = technique.finalize(model, TOKENS)
    assert sorted(record["groups"].values()) and all(size == 4 for size, _ in record["groups"].values())
    assert sum(left for _, left in record["groups"].values()) <= 4
    with torch.no_grad():
        for layer in range(2):
            out = silenced.get_submodule(f"blocks.{layer}.attention.out")
            kept = record["kept"].get(f"blocks.{layer}.attention.out.weight", {}).get("1", range(16))
            assert all(set(range(4 * (i // 4), 4 * (i // 4) + 4)) <= set(kept) for i in kept)
            out.weight[:, [i for i in range(16) if i not in kept]] = 0.0
    tokens = torch.arange(8).view(1, 8) % 11
    torch.testing.assert_close(model(tokens), silenced(tokens))
    assert record["heads"] == {
        f"blocks.{n}.attention.query": model.get_submodule(f"blocks.{n}.attention.query").out_features // 4
        for n in range(2)
    }


def test_only_the_kinds_asked_for_go_and_heads_have_a_multiple_of_their_own() -> None:
    model = gpt()
    kept = Structured(share=0.4, multiple=16, heads_multiple=2, scope="uniform").finalize(model, TOKENS)
    for name, (size, left) in kept["groups"].items():
        assert left % (2 if size == 4 else 16) == 0, name
    assert model.get_submodule("blocks.0.attention.query").out_features == 8
    assert model.get_submodule("blocks.0.mlp.up").out_features == 32
    assert model.get_submodule("embed.tokens").weight.shape == (11, 16)


def test_blocks_of_smallest_weights_go_as_wholes() -> None:
    model, shorter = gpt(layers=4), gpt(layers=4)
    with torch.no_grad():
        for small in (1, 2):
            for net in (model, shorter):
                for parameter in net.get_submodule(f"blocks.{small}").parameters():
                    parameter.mul_(0.5)
    record = Structured(kinds=("blocks",), share=0.5).finalize(model, TOKENS)
    assert list(record["blocks"]) == ["blocks.1", "blocks.2"]
    shorter.blocks = nn.Sequential(shorter.blocks[0], shorter.blocks[3])  # pyright: ignore
    tokens = torch.arange(8).view(1, 8) % 11
    assert torch.equal(model(tokens), shorter(tokens))
    fresh = gpt(layers=4)
    Structured(kinds=("blocks",)).rebuild(fresh, record)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(tokens), model(tokens))
    before, after = record["removed"]["parameters"]
    assert after == sum(p.numel() for p in shorter.parameters()) < before


@pytest.mark.parametrize("of", ["parameters", "multiply_adds"])
def test_blocks_go_until_the_share_of_the_whole_model_is_met(of: Any) -> None:
    record = Structured(kinds=("blocks",), share=0.6, of=of, score="l1").finalize(gpt(layers=5), TOKENS)
    before, after = record["removed"][of]
    one = (before - after) / len(record["blocks"])
    assert before - after >= 0.6 * before > before - after - one


# ── budgets


def test_each_glob_may_have_a_share_of_its_own() -> None:
    model = mlp()
    Structured(share={"fc1.*": 0.25, "fc2.*": 0.75}, multiple=1).finalize(model, state_for(6))
    assert [model.fc1.out_features, model.fc2.out_features] == [15, 3]


@pytest.mark.parametrize("of", ["parameters", "multiply_adds"])
def test_neurons_go_until_the_share_of_the_whole_model_is_met(of: Any) -> None:
    model = build_model({"name": "lenet_300_100", "hidden": [64, 48]}).module
    record = Structured(share=0.5, of=of).finalize(model, state_for(784))
    widths = [model.fc1.out_features, model.fc2.out_features]
    assert all(width % 8 == 0 for width in widths)
    counted = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": 784 * widths[0] + widths[0] * widths[1] + widths[1] * 10,
    }
    before, after = record["removed"][of]
    assert after == counted[of] and 0.5 * before <= before - after < 0.5 * before + 8 * (784 + 48 + 2)
    assert record["checks"][0]["requested"] == 0.5


def test_the_same_weights_keep_the_same_units_wherever_they_come_from() -> None:
    kept = [kept_of(Structured(share=0.3, of="parameters", multiple=2), mlp(), 6) for _ in range(2)]
    assert kept[0] == kept[1]


def test_match_narrows_what_may_go() -> None:
    model = mlp()
    Structured(match="fc2.weight", share=0.5, multiple=1).finalize(model, state_for(6))
    assert [model.fc1.out_features, model.fc2.out_features] == [20, 6]


# ── said before the first step


def test_what_will_stay_divisible_is_foretold_on_shapes_alone() -> None:
    model = gpt().to("meta")
    widths = Structured(multiple=8, heads_multiple=2).foretell(model, (TOKENS["example"]["0"].to("meta"),))
    assert widths["blocks.0.attention.query.weight"] == {0: 2}
    assert widths["blocks.0.attention.out.weight"] == {1: 2}
    assert widths["blocks.1.mlp.up.weight"] == {0: 8} and widths["blocks.1.mlp.down.weight"] == {1: 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"share": 0.95, "multiple": 1},
            r"share=0.95 of the removable units is to go, but no more than 0.875",
        ),
        ({"kinds": ("heads",)}, r"nothing of the kinds heads may be removed.*fc1 \(neurons\)"),
        ({"match": "fc3.*"}, r"nothing of the kinds.*fc3 \(neurons: the model's output\)"),
        ({"kinds": ("blocks",)}, r"two residual blocks or more.*the model has none"),
        ({"score": "scale", "match": "fc3.*"}, "nothing of the kinds"),
    ],
)
def test_a_removal_that_could_not_deliver_is_refused_before_the_first_step(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Structured(**settings).foretell(mlp().to("meta"), (torch.zeros(1, 6, device="meta"),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, "share=1.5"),
        ({"share": {"a": 0.0}}, "share=0.0"),
        ({"share": {"a": 0.5}, "of": "parameters"}, "of='parameters' with a share for each glob"),
        ({"kinds": ()}, "at least one of"),
        ({"kinds": ("blocks", "heads")}, "an entry of their own"),
        ({"heads_multiple": 0}, "multiple=0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Structured(**settings)
