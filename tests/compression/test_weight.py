"""The shard view of one parameter is the whole parameter's, on every way to cut it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from forgepress.compression import Run, Weight, weights_of
from forgepress.parallel import Layout, Mesh, NativeEngine
from forgepress.parallel.whole import full_tensor, local_part
from forgepress.tests.ranks import run_on_ranks
from torch import Tensor, nn

MESHES: dict[str, dict[str, int]] = {
    "one process": {},
    "replicate=2": {"replicate": 2},
    "shard=4": {"shard": 4},  # 6 rows: 2, 2, 2, 0; 3 rows: 1, 1, 1, 0
    "tensor=2": {"tensor": 2},
    "shard=2 x tensor=2": {"shard": 2, "tensor": 2},  # fc1: strided shards of dim 0; fc2: dim 0 and dim 1
    "replicate=2 x shard=2": {"replicate": 2, "shard": 2},
    "pipeline=2 x shard=2": {"pipeline": 2, "shard": 2},
}


def model() -> nn.Sequential:
    torch.manual_seed(3)
    module = nn.Sequential()
    module.add_module("fc1", nn.Linear(5, 6))
    module.add_module("act", nn.Tanh())
    module.add_module("fc2", nn.Linear(6, 3))
    return module


LAYOUT = Layout(order=("fc1", "act", "fc2"), tensor_plan={"fc1": "column", "fc2": "row"})


def spread(degrees: dict[str, int]) -> tuple[Mesh, list[Weight]]:
    mesh = Mesh.build(degrees)
    layout = LAYOUT if mesh.pipeline == 1 else Layout(order=LAYOUT.order)
    engine = NativeEngine(model(), layout, mesh, microbatches=mesh.pipeline)
    axes = ("shard", "context", "tensor")
    return mesh, weights_of(engine.parameters(), {axis: mesh.coordinates[axis] for axis in axes})


def positions(degrees: dict[str, int]) -> list[str]:
    """Weights and dims where `start`, `along` or `reduced` give something else than the whole parameter has."""
    _, weights = spread(degrees)
    whole = {name: p.detach() for name, p in model().named_parameters()}
    wrong = []
    for weight in weights:
        expected = whole[weight.name]
        here = expected
        for dim in range(expected.ndim):
            here = here.index_select(dim, weight.start(dim))
        wrong += [] if torch.equal(here, weight.local) else [f"{weight.name} start"]
        for dim in range(expected.ndim):
            line, put = weight.along(weight.local, dim)
            others = [d for d in range(expected.ndim) if d != dim]
            want = expected
            for other in others:
                want = want.index_select(other, weight.start(other))
            wrong += [] if torch.equal(line, want) else [f"{weight.name} along {dim}"]
            wrong += [] if torch.equal(put(line), weight.local) else [f"{weight.name} back {dim}"]
            sums = weight.sum(weight.local, (dim,))
            placed = full_tensor(weight.reduced({dim: 1}).wrap(sums))
            close = torch.allclose(placed, expected.sum(dim, keepdim=True))
            wrong += [] if close else [f"{weight.name} reduced {dim}"]
    return wrong


@pytest.mark.parametrize("mesh", MESHES)
def test_a_part_knows_where_it_lies_and_a_dim_can_be_made_whole(mesh: str) -> None:
    degrees = MESHES[mesh]
    ranks = math.prod(degrees.values())
    assert run_on_ranks(positions, degrees, ranks=ranks) == [[]] * ranks


def reductions(degrees: dict[str, int]) -> list[str]:
    """Weights, dims and operations whose result is not that of the whole parameter. Empty = all right."""
    _, weights = spread(degrees)
    whole = {name: p.detach() for name, p in model().named_parameters()}
    wrong = []
    for weight in weights:
        x, away = whole[weight.name], weight.local - 0.25
        all_dims: list[tuple[int, ...] | None] = [None, (), *[(d,) for d in range(x.ndim)]]
        for dims in all_dims:
            reduced = tuple(range(x.ndim)) if dims is None else dims
            sums = (x - 0.25).sum(dim=reduced, keepdim=True) if reduced else x - 0.25
            largest = (x - 0.25).amax(dim=reduced, keepdim=True) if reduced else x - 0.25
            for name, got, want in (
                ("sum", weight.sum(away, dims), sums),
                ("amax", weight.amax(away, dims), largest),
            ):
                here = local_part(want.expand_as(x), weight.parameter)
                if got.ndim != x.ndim or not torch.allclose(got.expand_as(weight.local), here):
                    wrong.append(f"{name} of {weight.name} over {dims}")
        if weight.shape != x.shape or weight.add_over_parts(torch.tensor(weight.local.numel())) != x.numel():
            wrong.append(f"size of {weight.name}")
    return wrong


@pytest.mark.parametrize("mesh", MESHES)
def test_sums_and_maxima_are_those_of_the_whole_parameter(mesh: str) -> None:
    assert run_on_ranks(reductions, MESHES[mesh], ranks=_ranks(mesh)) == [[]] * _ranks(mesh)


def _ranks(mesh: str) -> int:
    return math.prod(MESHES[mesh].values())


def placed(degrees: dict[str, int]) -> dict[str, Any]:
    """Local numbers wrapped as the parameter is, made whole; and totals over all that is owned."""
    mesh, weights = spread(degrees)
    parts = ("pipeline", "shard", "context", "tensor")
    run = Run(weights, steps=1, reduce=lambda x, operation: mesh.reduce(x, operation, parts))
    return {
        "whole": {w.name: full_tensor(w.wrap((w.local * 2).to(torch.float64))) for w in weights},
        "total": float(run.total(weights, [w.local.double().sum() for w in weights])),
        "count": run.count(weights),
        "kth": [int(run.kth_magnitude(weights, k).view(torch.int32)) for k in (1, 20, 57)],
        "empty": [w.name for w in weights if not w.local.numel()],
        "written": _write(weights),
    }


def _write(weights: list[Weight]) -> dict[str, Tensor]:
    for weight in weights:
        weight.local.fill_(7.0)
    return {w.name: full_tensor(w.parameter) for w in weights}


@pytest.mark.parametrize("mesh", MESHES)
def test_wrapped_tensors_totals_and_quantiles_are_those_of_one_process_and_writing_reaches_the_parameter(
    mesh: str,
) -> None:
    parameters = dict(model().named_parameters())
    flat = torch.cat([p.detach().abs().flatten() for p in parameters.values()])
    seen: set[str] = set()
    answers = run_on_ranks(placed, MESHES[mesh], ranks=_ranks(mesh))
    for answer in answers:
        for name, whole in answer["whole"].items():
            assert torch.equal(whole, (parameters[name].detach() * 2).double())
        assert answer["total"] == pytest.approx(
            sum(float(p.detach().double().sum()) for p in parameters.values())
        )
        assert answer["count"] == 57
        assert answer["kth"] == [int(flat.kthvalue(k).values.view(torch.int32)) for k in (1, 20, 57)]
        assert all((whole == 7.0).all() for whole in answer["written"].values())
        seen |= answer["whole"].keys()
    assert seen == parameters.keys()
    if mesh == "shard=4":
        assert "fc2.weight" in answers[3]["empty"]


# ── the projection


def weight() -> Weight:
    return Weight("w", nn.Parameter(torch.tensor([1.0, -2.0, 3.0])))


def test_projecting_keeps_the_dense_values_and_restoring_brings_them_back() -> None:
    w = weight()
    w.project(lambda local: local.mul_(torch.tensor([1.0, 0.0, 1.0])))
    assert w.parameter.tolist() == [1.0, 0.0, 3.0] and w.dense.tolist() == [1.0, -2.0, 3.0]
    w.restore_dense()
    assert w.parameter.tolist() == [1.0, -2.0, 3.0] and not w.projected


def test_a_second_projection_sees_the_first_ones_working_values_and_the_dense_ones_stay() -> None:
    w = weight()
    w.project(lambda local: local.mul_(torch.tensor([1.0, 0.0, 1.0])))
    w.project(lambda local: local.mul_(0.5))
    assert w.live().tolist() == [0.5, 0.0, 1.5] and w.dense.tolist() == [1.0, -2.0, 3.0]


def test_at_the_end_of_a_phase_the_working_values_are_the_only_ones() -> None:
    w = weight()
    w.project(lambda local: local.zero_())
    w.forget_dense()
    w.restore_dense()
    assert w.live().tolist() == [0.0, 0.0, 0.0] and w.dense.tolist() == [0.0, 0.0, 0.0]


def test_frozen_parameters_are_no_weights() -> None:
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    assert [w.name for w in weights_of({"frozen": frozen, "w": nn.Parameter(torch.ones(2))})] == ["w"]
