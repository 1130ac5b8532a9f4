"""FSDP2 shards are the optimizer's storage: stable, and what is written there is what the next forward uses."""

from typing import Any

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import Layout, Mesh, NativeEngine
from forgepress.parallel.fully_sharded import find_units
from forgepress.parallel.whole import gather
from forgepress.tests.parallel.toys import MLP_LAYOUT, local_rows, make_data, make_model, summed_loss
from forgepress.tests.ranks import run_on_ranks
from torch import nn
from torch.distributed.tensor import DTensor


def write_between_steps(degrees: dict[str, int], units: bool = True) -> dict[str, Any]:
    """Views are taken before the first step; weights are set through them; each forward must see them."""
    mesh = Mesh.build(degrees)
    model, layout = make_model("mlp")
    engine = NativeEngine(model, layout if units else Layout(), mesh)  # no units: all hangs on the root
    views = {
        n: p.to_local() if isinstance(p, DTensor) else p.detach() for n, p in engine.parameters().items()
    }
    objects = engine.parameters()
    data = make_data("mlp", 12, 0)
    mine, _ = local_rows(12, microbatches=1, rank=mesh.data_rank, ranks=mesh.data_ranks, pad=False)
    columns = {name: column[mine] for name, column in data.items()}
    found = []
    for round in range(3):
        with torch.no_grad():
            for view in views.values():
                view.mul_(1.0 + 0.1 * round)
        outputs = engine.forward(columns, lambda c: c["x"])  # no gradients: nothing may stay gathered
        found.append(outputs.abs().sum().item())
        with torch.no_grad():
            for view in views.values():
                view.mul_(-0.9)
        engine.zero_grad()
        loss = engine.forward_backward(
            columns, None, lambda c: c["x"], lambda y, c, v: summed_loss(y, c, v, 12)
        )
        found.append(mesh.reduce(loss, over=("replicate", "shard")).item())
    for name, parameter in engine.parameters().items():
        assert parameter is objects[name]
        now = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        assert now.untyped_storage().data_ptr() == views[name].untyped_storage().data_ptr() or not now.numel()
    sizes = {name: view.shape[0] for name, view in views.items()}
    return {
        "losses": found[1::2],
        "outputs": found[0::2],
        "sizes": sizes,
        "state": gather(engine.parameters(), mesh),
    }


@pytest.mark.parametrize(
    ("ranks", "degrees", "units"),
    [(3, {"shard": 3}, True), (4, {"shard": 4}, True), (2, {"shard": 2}, False), (2, {"replicate": 2}, True)],
)
def test_what_is_written_into_local_views_is_what_the_next_forward_sees(
    ranks: int, degrees: dict[str, int], units: bool
) -> None:
    one = write_between_steps({})
    many = run_on_ranks(write_between_steps, degrees, units, ranks=ranks)
    assert len(set(one["losses"])) == 3
    for answer in many:
        assert answer["losses"] == pytest.approx(one["losses"], rel=1e-12)
    for round in range(3):
        assert sum(a["outputs"][round] for a in many) == pytest.approx(one["outputs"][round], rel=1e-12)
    for name, tensor in one["state"].items():
        assert torch.equal(many[0]["state"][name], tensor)
    if degrees == {"shard": 4}:
        assert [answer["sizes"]["fc4.bias"] for answer in many] == [1, 1, 1, 0]
        assert [answer["sizes"]["fc2.weight"] for answer in many] == [3, 3, 3, 1]


def test_units_are_the_members_of_the_order_or_what_globs_name() -> None:
    model, _ = make_model("mlp")
    assert find_units(model, MLP_LAYOUT) == ["fc1", "fc2", "fc3", "fc4"]
    assert find_units(model, Layout(units=("fc[13]",))) == ["fc1", "fc3"]
    assert find_units(model, Layout()) == []
    with pytest.raises(ConfigError, match="'block\\*' names no module"):
        find_units(model, Layout(units=("block*",)))


def test_a_unit_that_shares_a_parameter_is_left_to_the_whole() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight
    assert find_units(model, Layout(order=("0", "1", "2"))) == ["1"]


def tied(degrees: dict[str, int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)).double()
    model[2].weight = model[0].weight
    mesh = Mesh.build(degrees)
    engine = NativeEngine(model, Layout(order=("0", "1", "2")), mesh)
    tokens = torch.tensor([0, 1, 2, 3]).chunk(mesh.data_ranks)[mesh.data_rank]
    engine.forward_backward({"x": tokens}, None, lambda c: c["x"], lambda y, c, v: y.square().sum())
    return gather({name: p.grad for name, p in engine.parameters().items() if p.grad is not None}, mesh)


@pytest.mark.parametrize("degrees", [{"shard": 2}, {"replicate": 2}])
def test_tied_parameters_stay_one_parameter(degrees: dict[str, int]) -> None:
    one, two = tied({}), run_on_ranks(tied, degrees, ranks=2)[0]
    assert one.keys() == two.keys() == {"0.weight", "1.weight", "1.bias"}
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor)
