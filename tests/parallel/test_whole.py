"""Whole tensors come out of any mesh bit for bit, and go back into it."""

from typing import Any

import pytest
import torch
from forgepress.parallel import Mesh, NativeEngine
from forgepress.parallel.whole import divided_as, full_tensor, gather, local_part, place, scatter
from forgepress.tests.parallel.toys import make_model
from forgepress.tests.ranks import run_on_ranks
from torch.distributed.tensor import DTensor

MESHES = [
    (2, {"shard": 2}),
    (4, {"shard": 4}),
    (4, {"shard": 2, "tensor": 2}),
    (6, {"shard": 3, "tensor": 2}),
    (4, {"pipeline": 2, "shard": 2}),
    (8, {"pipeline": 2, "replicate": 2, "tensor": 2}),
    (8, {"pipeline": 2, "shard": 2, "tensor": 2}),
]


def there_and_back(degrees: dict[str, int]) -> dict[str, Any]:
    mesh = Mesh.build(degrees)
    model, layout = make_model("mlp")
    engine = NativeEngine(model, layout, mesh, microbatches=2)
    start = gather(engine, mesh)
    other = {
        name: torch.arange(t.numel(), dtype=t.dtype).view(t.shape)
        for name, t in make_model("mlp")[0].state_dict().items()
    }
    scatter(other if mesh.rank == 0 else {}, engine, mesh)
    scattered = gather(engine, mesh)
    for name, parameter in engine.parameters().items():  # what a rank cuts for itself is what it was sent
        here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        assert torch.equal(local_part(other[name], parameter), here.detach())
        moment = divided_as(here.detach() * 2, parameter)
        assert torch.equal(full_tensor(moment), other[name] * 2)
    place({name: -tensor for name, tensor in other.items()}, engine)
    return {"start": start, "scattered": scattered, "placed": gather(engine, mesh), "other": other}


@pytest.mark.parametrize(("ranks", "degrees"), MESHES)
def test_gather_scatter_and_place_are_exact_on_uneven_parts(ranks: int, degrees: dict[str, int]) -> None:
    answers = run_on_ranks(there_and_back, degrees, ranks=ranks)
    for answer in answers[1:]:
        assert answer["start"] == answer["scattered"] == answer["placed"] == {}
    first, other = answers[0], answers[0]["other"]
    model = make_model("mlp")[0].state_dict()
    for found, want in (
        (first["start"], model),
        (first["scattered"], other),
        (first["placed"], {n: -t for n, t in other.items()}),
    ):
        assert found.keys() == want.keys()
        for name, tensor in want.items():
            assert torch.equal(found[name], tensor), name


def test_one_process_gathers_copies() -> None:
    model, layout = make_model("conv")
    engine = NativeEngine(model, layout, Mesh())
    whole = gather(engine, Mesh())
    assert whole.keys() == model.state_dict().keys()
    assert whole["conv.weight"].data_ptr() != model.get_parameter("conv.weight").data_ptr()
    scatter({name: torch.zeros_like(tensor) for name, tensor in whole.items()}, engine, Mesh())
    assert not model.get_parameter("conv.weight").any()


def scatter_too_little() -> str:
    mesh = Mesh.build({"shard": 2})
    model, layout = make_model("mlp")
    engine = NativeEngine(model, layout, mesh)
    with pytest.raises(KeyError) as caught:
        scatter({"fc1.weight": torch.zeros(12, 8)} if mesh.rank == 0 else {}, engine, mesh)
    return str(caught.value)


def test_a_missing_whole_tensor_is_named_on_all_ranks() -> None:
    assert all("fc4.bias" in message for message in run_on_ranks(scatter_too_little, ranks=2))


def test_a_whole_tensor_of_another_shape_is_refused() -> None:
    model, layout = make_model("mlp")
    with pytest.raises(ValueError, match="does not fit"):
        place({"fc1.bias": torch.zeros(5)}, NativeEngine(model, layout, Mesh()))
