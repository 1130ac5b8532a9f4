"""DDP, FSDP2 and HSDP give the summed gradient, and leave alone what gets none."""

from typing import Any

import pytest
import torch
from forgepress.parallel import Layout, Mesh, NativeEngine
from forgepress.parallel.whole import gather
from forgepress.tests.parallel.toys import train
from forgepress.tests.ranks import run_on_ranks
from torch import nn


@pytest.mark.parametrize(
    ("ranks", "degrees"), [(2, {"replicate": 2}), (2, {"shard": 2}), (4, {"replicate": 2, "shard": 2})]
)
def test_frozen_parameters_stay_and_unused_ones_get_no_gradient(ranks: int, degrees: dict[str, int]) -> None:
    one = train("partial", {}, microbatches=2)
    many = run_on_ranks(train, "partial", degrees, ranks=ranks, microbatches=2)[0]
    assert (
        one["gradients"].keys()
        == many["gradients"].keys()
        == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    )
    for kind in ("gradients", "state"):
        for name, tensor in one[kind].items():
            torch.testing.assert_close(many[kind][name], tensor, rtol=1e-10, atol=1e-12)
    assert torch.equal(many["state"]["frozen.weight"], one["state"]["frozen.weight"])


def gradients_in_float32(degrees: dict[str, int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    mesh = Mesh.build(degrees)
    engine = NativeEngine(model, Layout(order=("0", "1")), mesh)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).chunk(mesh.data_ranks)[mesh.data_rank]
    for _ in range(2):  # DDP reduces by itself from the second step on
        engine.zero_grad()
        engine.forward_backward({"x": x}, None, lambda c: c["x"], lambda y, c, v: y.square().sum())
    return gather({name: p.grad for name, p in engine.parameters().items() if p.grad is not None}, mesh)


def test_ddp_fsdp2_and_hsdp_have_equal_gradients_in_float32_where_gloo_averages_wrongly() -> None:
    one = gradients_in_float32({})
    for degrees in ({"replicate": 4}, {"shard": 4}, {"replicate": 2, "shard": 2}):
        many = run_on_ranks(gradients_in_float32, degrees, ranks=4)[0]
        assert one.keys() == many.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(many[name], tensor, rtol=1e-5, atol=1e-5)


class Branch(nn.Module):
    """Uses its second layer on some ranks only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y) if bool((x > 0).all()) else y


def branch() -> list[dict[str, Any]]:
    mesh = Mesh.build({"replicate": 2})
    torch.manual_seed(0)
    engine = NativeEngine(Branch(), Layout(), mesh)
    found = []
    for _ in range(3):
        engine.zero_grad()
        x = torch.full((1, 2), 1.0 if mesh.rank else -1.0)
        engine.forward_backward({"x": x}, None, lambda c: c["x"], lambda y, c, v: y.sum())
        found.append({name: p.grad.clone() for name, p in engine.parameters().items() if p.grad is not None})
    return found


def test_a_layer_that_only_one_rank_uses_has_the_same_gradient_on_both() -> None:
    here, there = run_on_ranks(branch, ranks=2)
    for step in range(3):
        assert here[step].keys() == there[step].keys() == {"first.weight", "second.weight"}
        for name in here[step]:
            assert torch.equal(here[step][name], there[step][name])
            torch.testing.assert_close(here[step][name], here[0][name])


def different_starts() -> torch.Tensor:
    mesh = Mesh.build({"replicate": 2})
    torch.manual_seed(mesh.rank)
    engine = NativeEngine(nn.Linear(3, 3), Layout(), mesh)
    return engine.parameters()["weight"].detach().clone()


def test_all_data_ranks_start_with_the_weights_of_the_first() -> None:
    first, second = run_on_ranks(different_starts, ranks=2)
    assert torch.equal(first, second)
