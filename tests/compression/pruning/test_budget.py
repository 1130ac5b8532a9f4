"""Budgets: what Erdős–Rényi gives each layer, N:M masks against every pattern there is, and lines for each scope."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from forgepress.compression import Chain, Run, weights_of
from forgepress.compression.pruning._budget import erdos_renyi
from forgepress.compression.pruning._pattern import Pattern
from forgepress.compression.pruning.magnitude import Magnitude
from forgepress.compression.pruning.network_surgery import NetworkSurgery
from forgepress.errors import ConfigError, NoOpError
from forgepress.tests.compression.loops import chain_of, parameters, training, zeros
from forgepress.tests.ranks import run_on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

LENET_5 = [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]


# ── Erdős–Rényi


@pytest.mark.parametrize("kernel", [False, True])
def test_erdos_renyi_keeps_in_proportion_to_widths_and_meets_the_share_in_all(kernel: bool) -> None:
    shapes = [(300, 784), (100, 300), (64, 32, 3, 3)]
    shares = erdos_renyi(shapes, 0.9, kernel=kernel)
    counts = [math.prod(shape) for shape in shapes]
    assert sum(s * n for s, n in zip(shares, counts, strict=True)) == pytest.approx(0.9 * sum(counts), abs=1)
    if kernel:
        form = [sum(shape) / math.prod(shape) for shape in shapes]
    else:
        form = [(shape[0] + shape[1]) / (shape[0] * shape[1]) for shape in shapes]
    scales = [(1 - share) / f for share, f in zip(shares, form, strict=True)]
    assert scales == pytest.approx([scales[0]] * 3)


def test_a_layer_that_the_formula_would_overfill_stays_dense_and_the_others_pay_for_it() -> None:
    shares = erdos_renyi(LENET_5, 0.8, kernel=True)
    assert shares[0] == shares[3] == 0.0  # 31/500 and 510/5000 times a common factor would be above one
    counts = [math.prod(shape) for shape in LENET_5]
    assert sum(s * n for s, n in zip(shares, counts, strict=True)) == pytest.approx(0.8 * sum(counts), abs=1)
    kept = [(1 - s) * n / sum(shape) for s, n, shape in zip(shares, counts, LENET_5, strict=True)]
    assert kept[1] == pytest.approx(kept[2])


def test_nothing_is_pruned_at_a_share_of_zero() -> None:
    assert erdos_renyi([(3, 4), (5, 3)], 0.0, kernel=False) == [0.0, 0.0]


@pytest.mark.parametrize("scope", ["erdos_renyi", "erdos_renyi_kernel"])
def test_both_techniques_give_each_layer_its_share(scope: Any) -> None:
    shapes = {
        "conv__weight": (8, 6, 3, 3),
        "fc1__weight": (40, 50),
        "fc1__bias": (40,),
        "fc2__weight": (4, 40),
    }
    shares = erdos_renyi([(8, 6, 3, 3), (40, 50), (4, 40)], 0.7, kernel=scope == "erdos_renyi_kernel")
    wanted = [round(s * n) for s, n in zip(shares, (432, 2000, 160), strict=True)]
    for technique in (
        Magnitude(sparsity=0.7, scope=scope, end=3, every=1),
        NetworkSurgery(sparsity=0.7, scope=scope, stop=3, every=1),
    ):
        held = parameters(**shapes)
        chain = chain_of(held, technique, steps=4)
        list(training(chain, held, torch.optim.SGD(held.values(), lr=0.01), 4))
        assert [zeros(held, name) for name in ("conv.weight", "fc1.weight", "fc2.weight")] == wanted
        lines = {check.quantity: check for check in next(iter(chain.demand().values()))}
        assert lines["sparsity"].achieved == pytest.approx(sum(wanted) / 2592)
        assert lines["layers with too few zeros"].achieved == 0.0


def test_a_layer_short_of_its_share_is_found_though_another_has_more() -> None:
    held = parameters(fc1__weight=(6, 5), fc2__weight=(6, 5))
    chain = chain_of(held, Magnitude(sparsity=0.5, scope="uniform", ramp="one_shot", begin=1), steps=2)
    list(training(chain, held, torch.optim.SGD(held.values(), lr=0.01), 2))
    with torch.no_grad():
        held["fc1.weight"].zero_()
        held["fc2.weight"].fill_(1.0)
    with pytest.raises(NoOpError, match="requested layers with too few zeros 0 but the model has 1"):
        chain.demand()


# ── N:M


def best_pattern(weight: Tensor, keep: int, group: int) -> Tensor:
    """[out, in] → bool: of all patterns the one with the largest sum of magnitudes, group by group."""
    padded = torch.nn.functional.pad(weight.abs(), (0, -weight.shape[1] % group))
    choices = torch.tensor(
        [[i in kept for i in range(group)] for kept in itertools.combinations(range(group), keep)]
    )
    groups = padded.unflatten(1, (-1, group))  # [out, groups, M]
    sums = groups.double() @ choices.double().T
    return choices[sums.argmax(dim=-1)].flatten(1)[:, : weight.shape[1]]


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 4), (3, 5), (1, 2)])
def test_a_mask_is_the_best_of_all_patterns_also_in_a_short_last_group(keep: int, group: int) -> None:
    weight = torch.randn(7, 14, generator=torch.Generator().manual_seed(1))
    mask = Pattern(keep, group).mask(weight.abs(), 1, keep)
    short = 14 - 14 % group
    assert torch.equal(mask[:, :short], best_pattern(weight[:, :short], keep, group))
    assert (mask[:, short:].sum(dim=1) == min(14 - short, keep)).all()


def test_a_convolution_has_its_groups_along_the_input_channels() -> None:
    weight = torch.randn(3, 8, 2, 3, generator=torch.Generator().manual_seed(2))
    mask = Pattern(2, 4).mask(weight.abs(), 1, 2)
    for y, x in itertools.product(range(2), range(3)):
        assert torch.equal(mask[:, :, y, x], best_pattern(weight[:, :, y, x], 2, 4))


def test_among_equal_magnitudes_the_first_are_kept() -> None:
    assert Pattern(2, 4).mask(torch.ones(1, 8), 1, 2).tolist() == [[True, True, False, False] * 2]


@pytest.mark.parametrize("technique", [Magnitude, NetworkSurgery])
def test_a_pattern_ramps_from_m_to_n_and_is_held(technique: Any) -> None:
    held = parameters(fc__weight=(6, 10), fc__bias=(6,), conv__weight=(4, 8, 3, 3))
    settings = {"begin": 2, "end": 10, "ramp": "linear"} if technique is Magnitude else {"stop": 10, "end": 9}
    chain = chain_of(held, technique(sparsity="1:4", every=1, **settings), steps=14)
    most, before = [], torch.zeros(60, dtype=torch.bool)
    for step in training(chain, held, torch.optim.Adam(held.values(), lr=0.05, weight_decay=0.1), 14):
        groups = (held["fc.weight"][:, :8] != 0).unflatten(1, (2, 4)).sum(dim=-1)
        assert (groups == groups[0, 0]).all()
        most.append(int(groups[0, 0]))
        if technique is Magnitude or step > 10:
            now = held["fc.weight"].detach().flatten() == 0
            assert (now | ~before).all()  # what was pruned is pruned
            before = now
    first = 4 if technique is Magnitude else 3  # a cubic ramp has left four behind at its first step
    assert sorted(set(most)) == list(range(1, first + 1)) and most == sorted(most, reverse=True)
    assert zeros(held, "fc.weight") == 6 * (3 + 3 + 1) and zeros(held, "conv.weight") == 4 * 9 * 6
    quantities = [check.quantity for check in next(iter(chain.demand().values()))]
    assert quantities == ["sparsity", "parameters off 1:4"]
    with torch.no_grad():
        held["fc.weight"].copy_(held["fc.weight"].roll(1, dims=1).flip(1).roll(2, dims=1))
        held["fc.weight"][0, :4] = torch.tensor([1.0, 1.0, 0.0, 0.0])
        held["fc.weight"][0, 4:8] = 0.0
    with pytest.raises(NoOpError, match="requested parameters off 1:4 0 but the model has 1"):
        chain.demand()


def test_a_pattern_splices_back_what_has_grown_beyond_the_margin() -> None:
    for margin, returns in ((0.1, True), (0.5, False)):
        held = {"w": nn.Parameter(torch.tensor([[2.0, 1.9, 1.0, 0.5]]))}
        chain = chain_of(held, NetworkSurgery(sparsity="2:4", margin=margin, every=1, end=1, stop=5), steps=6)
        optimizer = torch.optim.SGD(held.values(), lr=1.0)
        for step in range(1, 7):
            chain.before_step(1.0)
            held["w"].grad = torch.tensor([[0.0, 0.0, -0.6, 0.0]])  # the third grows: 1.6, 2.2, 2.8, 3.4
            chain.after_backward()
            chain.before_update()
            optimizer.step()
            chain.after_step()
            if step == 1:
                assert (held["w"] != 0).tolist() == [[True, True, False, False]]
            if step == 3:
                assert bool(held["w"][0, 2] != 0) == returns


def whole_after(dim: int | None, technique: Magnitude | NetworkSurgery) -> Tensor:
    """The weight after two steps; ``dim`` is the one that the ranks share, None for one process."""
    dense = torch.randn(5, 14, generator=torch.Generator().manual_seed(3))
    parameter, reduce = nn.Parameter(dense.clone()), None
    if dim is not None:
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),), mesh_dim_names=("shard",))
        parameter = nn.Parameter(distribute_tensor(dense, mesh, [Shard(dim)]))
        reduce = _reduce
    chain = Chain([technique], Run(weights_of({"fc.weight": parameter}), steps=2, reduce=reduce))
    for _ in range(2):
        chain.before_step()
        chain.after_backward()
        chain.before_update()
        chain.after_step()
    chain.demand()
    return parameter.detach() if dim is None else parameter.full_tensor().detach()  # pyright: ignore[reportAttributeAccessIssue]


def _reduce(x: Tensor, operation: str) -> Tensor:
    operations = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}
    torch.distributed.all_reduce(x, operations[operation])
    return x


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "technique",
    [
        Magnitude(sparsity="2:4", ramp="one_shot", begin=1),
        Magnitude(sparsity=0.6, scope="erdos_renyi", ramp="one_shot", begin=1),
        NetworkSurgery(sparsity="2:4", every=1, end=1, stop=2),
    ],
    ids=["magnitude", "erdos_renyi", "surgery"],
)
def test_three_ranks_find_the_masks_of_one_process_also_where_the_cut_goes_through_a_group(
    technique: Any, dim: int
) -> None:
    alone = whole_after(None, technique)  # 14 columns are 5, 5 and 4 on 3 ranks
    assert 0 < int((alone == 0).sum()) < 70
    for whole in run_on_ranks(whole_after, dim, technique, ranks=3):
        assert torch.equal(whole, alone)


# ── settings


@pytest.mark.parametrize("technique", [Magnitude, NetworkSurgery])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": "4:4"}, "sparsity='4:4': want a share .* or a pattern"),
        ({"sparsity": "half"}, "sparsity='half'"),
        ({"sparsity": 124.0}, "sparsity=124.0: .* in quotes"),
        ({"sparsity": "2:4", "scope": "erdos_renyi"}, "want a share from 0 to below 1, or another scope"),
        ({"sparsity": {}, "scope": "per_layer"}, "sparsity={}: want at least one glob"),
        ({"sparsity": 0.5, "scope": "per_layer"}, "a mapping of globs goes with per_layer"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    technique: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        technique(**settings)


def test_a_pattern_on_a_vector_is_refused_by_name() -> None:
    held = parameters(fc__weight=(4, 4), fc__bias=(4,))
    chain = chain_of(held, Magnitude(sparsity="2:4", match="*", ramp="one_shot", begin=1), steps=2)
    with pytest.raises(ConfigError, match=r"needs an input dim, but fc\.bias has the shape \[4\]"):
        list(training(chain, held, torch.optim.SGD(held.values(), lr=0.1), 1))


def test_given_budgets_take_patterns_and_shares_and_have_a_line_each() -> None:
    held = parameters(fc1__weight=(6, 8), fc2__weight=(5, 6), fc3__weight=(3, 5))
    shares: Any = {"fc1.*": "2:4", "fc2.weight": 0.2}
    for technique in (
        Magnitude(sparsity=shares, scope="per_layer", ramp="one_shot", begin=1),
        NetworkSurgery(sparsity=shares, scope="per_layer", stop=1),
    ):
        chain = chain_of(held, technique, steps=2)
        list(training(chain, held, torch.optim.SGD(held.values(), lr=0.01), 2))
        assert [zeros(held, f"fc{i}.weight") for i in (1, 2, 3)] == [24, 6, 0]
        names = [check.quantity for check in next(iter(chain.demand().values()))]
        assert names == ["sparsity of fc1.*", "parameters of fc1.* off 2:4", "sparsity of fc2.weight"]
        model = nn.ModuleDict({f"fc{i}": nn.Linear(2, 2) for i in (1, 2, 3)})
        assert technique.finalize(model, {})["zeros"] == ["fc1.weight", "fc1.bias", "fc2.weight"]
