"""Chains of modules are cut where the most expensive stage is cheapest, or where a person says."""

import itertools

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import Layout
from forgepress.parallel.split import balanced, by_hand, module_costs, parameter_costs
from torch import nn


def brute_force(costs: list[float], stages: int, whole: set[int]) -> float:
    places = [i for i in range(1, len(costs)) if i - 1 not in whole]
    return min(
        max(sum(costs[a:b]) for a, b in itertools.pairwise([0, *cut, len(costs)]))
        for cut in itertools.combinations(places, stages - 1)
    )


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("whole", [set(), {1, 4}])
def test_balanced_stages_have_the_least_possible_maximum(stages: int, whole: set[int]) -> None:
    costs = [float(c) for c in torch.randint(0, 50, (9,), generator=torch.Generator().manual_seed(stages))]
    lengths = balanced(costs, stages, whole)
    ends = list(itertools.accumulate(lengths))
    assert len(lengths) == stages and min(lengths) > 0 and ends[-1] == len(costs)
    assert not whole & {end - 1 for end in ends[:-1]}
    assert max(sum(costs[end - n : end]) for end, n in zip(ends, lengths, strict=True)) == brute_force(
        costs, stages, whole
    )


def test_more_stages_than_places_to_cut_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 modules cannot be cut into 3 stages"):
        balanced([1.0, 1.0, 1.0], 3, {0})


def test_stages_by_hand_take_globs() -> None:
    order = ("embedding", "blocks.0", "blocks.1", "blocks.2", "head")
    assert by_hand(order, [["embedding", "blocks.0"], ["blocks.[12]"], ["head"]]) == [2, 2, 1]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([["a"], ["c"]], "b in no stage"),
        ([["a", "b"], ["x*"]], "'x\\*' names none of the modules a, b, c"),
        ([["a", "b"], ["b", "c"]], "b is in stage 0 and in stage 1"),
        ([["a", "c"], ["b"]], "follow one another"),
    ],
)
def test_stages_by_hand_that_cannot_be_are_refused(stages: list[list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        by_hand(("a", "b", "c"), stages)


def test_costs_are_flops_where_an_example_is_given_and_parameters_otherwise() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 36, 3, bias=False))
    layout = Layout(order=("0", "1", "2"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert module_costs(model, layout, torch.zeros(2, 1, 6, 6)) == [2 * 2 * 4 * 9 * 36, 0, 2 * 2 * 4 * 36 * 3]
    assert module_costs(model, layout) == parameter_costs(model, layout.order) == [40, 0, 432]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_model_that_looks_at_values_is_costed_by_parameters() -> None:
    class Peeks(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) if input.sum().item() > 0 else input

    assert module_costs(nn.Sequential(Peeks(3, 3)), Layout(order=("0",)), torch.ones(2, 3)) == [12]
