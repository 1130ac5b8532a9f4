"""Optimizers: torch's own numbers, also for empty shards and tensors with strides, and decay where it belongs."""

from types import SimpleNamespace

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.trainer.config import OptimizerConfig
from forgepress.trainer.optimizers import build_optimizer, fastest_kernel, set_learning_rate
from torch import Tensor, nn

SETTINGS = {
    "sgd": {"name": "sgd", "lr": 0.1},
    "sgd with momentum": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "sgd with nesterov": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
    "adam": {"name": "adam", "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


def reference(settings: dict, tensors: list[Tensor]) -> torch.optim.Optimizer:
    """torch's plainest loop, one tensor after the other."""
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options = {name: value for name, value in settings.items() if name != "name"}
    return kinds[settings["name"]](tensors, foreach=False, fused=False, **options)


def tensors() -> list[Tensor]:
    """A matrix, a vector, an empty shard and the detached part of something larger, as local shards are."""
    generator = torch.Generator().manual_seed(4)
    whole = nn.Parameter(torch.randn(9, 3, generator=generator))
    return [
        nn.Parameter(torch.randn(5, 7, generator=generator)),
        nn.Parameter(torch.randn(3, generator=generator)),
        nn.Parameter(torch.empty(0, 7)),
        whole.detach()[6:],
    ]


def train(
    optimizer: torch.optim.Optimizer, held: list[Tensor], steps: int = 5, strided: bool = False
) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for tensor in held:
            gradient = torch.randn(tensor.shape, generator=generator)
            tensor.grad = gradient.t().contiguous().t() if strided and gradient.ndim == 2 else gradient
        optimizer.step()


def named(held: list[Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"layer{number}.weight", tensor) for number, tensor in enumerate(held)]


@pytest.mark.parametrize("name", SETTINGS)
def test_five_steps_equal_torchs_reference_with_an_empty_tensor(name):
    ours, theirs = tensors(), tensors()
    train(build_optimizer(OptimizerConfig(**SETTINGS[name]), named(ours)), ours)
    train(reference(SETTINGS[name], theirs), theirs)
    for mine, expected, start in zip(ours, theirs, tensors(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)
        assert mine.numel() == 0 or not torch.equal(mine, start)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_with_other_strides_give_the_same_step(name):
    ours, theirs = tensors(), tensors()
    train(build_optimizer(OptimizerConfig(**SETTINGS[name]), named(ours)), ours, strided=True)
    train(reference(SETTINGS[name], theirs), theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SETTINGS)
def test_tensors_with_other_strides_are_updated_in_place_and_nothing_beside_them(name):
    def column_shard() -> tuple[Tensor, Tensor]:
        whole = torch.arange(24.0).reshape(4, 6)
        return whole, whole[:, 2:4]  # what a row-parallel layer's shard may be

    (ours, mine), (theirs, expected) = column_shard(), column_shard()
    assert not fastest_kernel([mine]).get("fused")
    train(build_optimizer(OptimizerConfig(**SETTINGS[name]), [("weight", mine)]), [mine])
    train(reference(SETTINGS[name], [expected]), [expected])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_fused_kernel_is_taken_where_it_is_right():
    assert fastest_kernel(tensors()) == {"fused": True}
    assert fastest_kernel([]) == {"fused": True}


def test_a_rank_without_parameters_still_has_an_optimizer():
    optimizer = build_optimizer(OptimizerConfig(), [])
    optimizer.step()
    assert optimizer.state_dict()["state"] == {}


def test_groups_know_the_names_of_their_parameters():
    optimizer = build_optimizer(OptimizerConfig(), named(tensors()))
    assert optimizer.param_groups[0]["param_names"] == [f"layer{n}.weight" for n in range(4)]


def spared(*rules: str, names: tuple[str, ...] = ("a.weight", "a.bias", "norm.weight")) -> list[list[str]]:
    shapes = {"a.weight": (2, 2), "a.bias": (2,), "norm.weight": (2,)}
    held = [(name, nn.Parameter(torch.ones(shapes[name]))) for name in names]
    settings = SimpleNamespace(**OptimizerConfig(name="sgd", weight_decay=0.5, lr=1.0).model_dump())
    settings.decay_exclude = rules
    optimizer = build_optimizer(settings, held)
    for _, tensor in held:
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()  # without a gradient only decay moves a weight: 1 → 0.5
    return [[n for n, t in held if torch.equal(t, torch.full_like(t, value))] for value in (0.5, 1.0)]


def test_decay_falls_on_all_unless_something_is_excluded():
    assert spared() == [["a.weight", "a.bias", "norm.weight"], []]
    assert spared("*.bias") == [["a.weight", "norm.weight"], ["a.bias"]]
    assert spared("ndim<2") == [["a.weight"], ["a.bias", "norm.weight"]]
    assert spared("norm.*", "*.bias") == [["a.weight"], ["a.bias", "norm.weight"]]
    assert spared("*", names=("a.bias",)) == [[], ["a.bias"]]


def test_a_rule_about_dimensions_must_be_understood():
    with pytest.raises(ConfigError, match="'ndim=1'; want a glob"):
        spared("ndim=1")


def test_the_learning_rate_is_set_for_all_groups():
    ours, theirs = tensors(), tensors()
    optimizer = build_optimizer(OptimizerConfig(name="sgd", lr=0.7), named(ours))
    set_learning_rate(optimizer, 0.1)
    train(optimizer, ours)
    train(reference(SETTINGS["sgd"], theirs), theirs)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-7)


def test_state_moves_to_another_optimizer_and_goes_on_the_same():
    config = OptimizerConfig(**SETTINGS["adamw"])
    ours, theirs = tensors(), tensors()
    first, straight = build_optimizer(config, named(ours)), build_optimizer(config, named(theirs))
    train(first, ours)
    second = build_optimizer(config, named(ours))
    second.load_state_dict(first.state_dict())
    train(second, ours)
    train(straight, theirs)
    train(straight, theirs)
    assert all(torch.equal(mine, expected) for mine, expected in zip(ours, theirs, strict=True))


def test_integers_and_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="codes has dtype"):
        build_optimizer(OptimizerConfig(), [("codes", torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(ConfigError, match="'lion' is not known"):
        build_optimizer(OptimizerConfig.model_construct(name="lion"), named(tensors()))
