"""The short way to the optimizer's kernel gives the bits of the long one."""

import copy

import pytest
import torch
from forgepress.trainer.config import OptimizerConfig
from forgepress.trainer.optimizers import build_optimizer
from forgepress.trainer.update import update_of
from torch import nn


def _trained(settings: OptimizerConfig, short: bool, change) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    model[1].register_parameter("unused", nn.Parameter(torch.ones(2)))
    optimizer = build_optimizer(settings, list(model.named_parameters()))
    update = update_of(optimizer) if short else optimizer.step
    for step in range(6):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        change(step, model)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        update()
    moments = {f"{n}/{k}": v for n, p in model.named_parameters() for k, v in optimizer.state[p].items()}
    return {**copy.deepcopy(dict(model.named_parameters())), **moments}


def _as_it_is(step, model):
    pass


def _all_have_gradients(step, model):
    model[1].unused.grad = torch.full((2,), 0.5)


def _some_have_none_later(step, model):
    _all_have_gradients(step, model)
    if step in (2, 4):
        model[0].bias.grad = None


def _turned(step, model):
    _all_have_gradients(step, model)
    weight = model[0].weight
    weight.grad = weight.grad.t().contiguous().t()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("change", [_as_it_is, _all_have_gradients, _some_have_none_later, _turned])
def test_the_update_gives_the_bits_of_the_optimizers_own_step(name, change):
    settings = OptimizerConfig(name=name, lr=1e-2, weight_decay=0.1)
    long, short = (_trained(settings, way, change) for way in (False, True))
    assert long.keys() == short.keys()
    assert [key for key in long if not torch.equal(long[key], short[key])] == []


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_update_does_without_the_optimizers_step_from_the_second_on(name):
    weight = nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(OptimizerConfig(name=name), [("weight", weight)])
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    update = update_of(optimizer)
    for _ in range(3):
        weight.grad = torch.ones(3)
        update()
    assert len(calls) == 1
    assert optimizer.state[weight]["step"] == 3


def test_tensors_of_two_kinds_take_the_optimizers_own_step():
    pair = [("a", nn.Parameter(torch.ones(3))), ("b", nn.Parameter(torch.ones(3, dtype=torch.float64)))]
    optimizer = build_optimizer(OptimizerConfig(name="adam"), pair)
    assert update_of(optimizer) == optimizer.step
