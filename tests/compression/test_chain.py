"""A chain calls in list order, keeps dense weights learning behind projections, and says what did not happen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from forgepress.compression import Chain, Check, Run, Technique, weights_of
from forgepress.compression.pruning.magnitude import Magnitude
from forgepress.compression.pruning.network_surgery import NetworkSurgery
from forgepress.errors import NoOpError
from forgepress.tests.compression.loops import chain_of, gradient, parameters, training
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class HalfZero(Technique):
    """Compute with zeros below a magnitude; the dense weights go on learning."""

    below: float = 0.5

    def after_step(self, run: Run) -> None:
        for weight in run.weights(self.match):
            weight.project(lambda local: local.mul_(local.abs() >= self.below))


@dataclass(frozen=True, kw_only=True)
class Grid(Technique):
    """Compute with multiples of a step."""

    step: float = 0.25

    def after_step(self, run: Run) -> None:
        for weight in run.weights(self.match):
            weight.project(lambda local: local.div_(self.step).round_().mul_(self.step))


@dataclass(frozen=True, kw_only=True)
class Caller(Technique):
    """Writes its calls down."""

    name: str = ""
    calls: ClassVar[list[str]] = []

    def before_step(self, run: Run) -> None:
        self.calls.append(f"{self.name} before {run.step} {run.scope}")

    def add_loss(self, run: Run, outputs: Any, batch: Any, loss: Tensor) -> Tensor:
        return loss * 2 + 1

    def after_step(self, run: Run) -> None:
        run.memory["steps"] = run.memory.get("steps", 0) + 1
        self.calls.append(f"{self.name} after {run.step}")


def test_two_projections_train_the_dense_weights_with_gradients_taken_at_the_working_ones() -> None:
    held = parameters(w=(5, 7))
    dense = held["w"].detach().clone()
    working = dense.clone()
    chain = chain_of(held, HalfZero(), Grid(), steps=6)
    for step in training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 6):
        dense -= 0.1 * gradient(working, step)
        working = dense * (dense.abs() >= 0.5)
        working = (working / 0.25).round() * 0.25
        torch.testing.assert_close(held["w"].detach(), working)
        torch.testing.assert_close(chain.run.all_weights[0].dense, dense)
    assert (working == 0).any() and (dense != working).any()


def test_the_order_of_the_list_is_the_order_of_the_calls() -> None:
    Caller.calls.clear()
    held = parameters(w=(2, 2))
    chain = chain_of(held, Caller(name="a"), Caller(name="b"), steps=1)
    assert chain.add_loss(None, {}, torch.tensor(1.0)) == 7.0
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 1))
    own = f"{Caller.__module__}:Caller"
    assert Caller.calls == [f"a before 1 0.{own}", f"b before 1 1.{own}", "a after 1", "b after 1"]
    assert chain.state()["memories"] == {f"0.{own}": {"steps": 1}, f"1.{own}": {"steps": 1}}


def test_a_later_technique_that_undoes_an_earlier_ones_zeros_is_found() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Shift(Technique):
        def after_step(self, run: Run) -> None:
            for weight in run.weights(self.match):
                weight.local.add_(0.01)

    held = parameters(w=(5, 7))
    chain = chain_of(held, Magnitude(sparsity=0.5, ramp="one_shot", begin=1), Shift(), steps=2)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 1))
    with pytest.raises(
        NoOpError, match=r"step 1: technique 0.pruning.magnitude requested sparsity 0.51.* has 0;"
    ):
        chain.demand()


@pytest.mark.parametrize(
    ("achieved", "at_least", "holds"),
    [
        (0.49, True, True),
        (0.47, True, False),
        (0.90, True, True),
        (0.51, False, True),
        (0.53, False, False),
        (0.47, False, False),
    ],
)
def test_a_check_compares_within_its_tolerance(achieved: float, at_least: bool, holds: bool) -> None:
    check = Check(quantity="x", requested=0.5, achieved=achieved, tolerance=0.02, at_least=at_least)
    assert check.holds is holds


def test_finishing_leaves_the_working_weights_as_the_only_ones() -> None:
    held = parameters(w=(5, 7))
    chain = chain_of(held, HalfZero(), steps=1)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 1))
    working = held["w"].detach().clone()
    chain.finish()
    chain.before_update()
    assert torch.equal(held["w"].detach(), working)


def test_a_chain_taken_back_from_its_state_goes_on_bit_for_bit() -> None:
    def start() -> tuple[dict[str, nn.Parameter], Chain, torch.optim.SGD]:
        held = parameters(a=(5, 7), b=(7, 3))
        techniques = [NetworkSurgery(sparsity=0.6, every=2, stop=7), Grid(step=0.125)]
        return held, chain_of(held, *techniques, steps=10, seed=4), torch.optim.SGD(held.values(), lr=0.1)

    held, chain, optimizer = start()
    list(training(chain, held, optimizer, 4))
    state = json.loads(json.dumps(chain.state()))  # it goes through JSON
    tensors = {key: local.clone() for key, (_, local) in chain.tensors().items()}
    assert {key.split("/")[1] for key in tensors} == {"mask", "dense"}
    weights = {name: p.detach().clone() for name, p in held.items()}
    list(training(chain, held, optimizer, 5, first=5))

    again, other, optimizer = start()
    with torch.no_grad():
        for name, value in weights.items():
            again[name].copy_(value)
    other.load(state, tensors)
    list(training(other, again, optimizer, 5, first=5))
    for name in held:
        assert torch.equal(held[name], again[name])
        assert torch.equal(chain.run.all_weights[0].dense, other.run.all_weights[0].dense)


def test_a_technique_works_in_a_plain_torch_loop_of_somebody_else() -> None:
    """The example of `Chain`'s own documentation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows = torch.randn(256, 8)
    targets = (rows.sum(dim=1) > 0).long()
    loss = torch.tensor(0.0)

    chain = Chain([Magnitude(sparsity=0.8)], Run(weights_of(dict(model.named_parameters())), steps=100))
    for _ in range(100):
        chain.before_step(learning_rate=0.01)
        outputs = model(rows)
        loss = chain.add_loss(outputs, {}, nn.functional.cross_entropy(outputs, targets))
        loss.backward()
        chain.after_backward()
        chain.before_update()
        optimizer.step()
        chain.after_step()
        optimizer.zero_grad()

    assert sum(int((p == 0).sum()) for p in model.parameters()) == 240  # 80 % of 300 weights, no bias
    assert float(loss.detach()) < 0.1
    chain.demand()
