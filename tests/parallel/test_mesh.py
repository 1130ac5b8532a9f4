"""The mesh: degrees are checked, coordinates follow the axis order, reductions reach the right ranks."""

import re

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import AXES, Mesh, degrees_for, join
from forgepress.tests.ranks import run_on_ranks


@pytest.mark.parametrize(
    ("degrees", "world", "message"),
    [
        ({"shard": 2, "tensor": 3}, 4, "shard=2 × tensor=3 needs 6 ranks, but 4 were launched"),
        ({}, 2, "one process needs 1 rank, but 2 were launched"),
        ({"replicate": 2}, 1, "but 1 was launched; change a degree or run with ranks=2"),
        ({"shard": 0}, 1, "parallel.shard=0: want an integer"),
        ({"tensor": True}, 1, "parallel.tensor=True: want an integer"),
        ({"tensors": 2}, 2, "parallel.tensors: no such axis; the axes are pipeline"),
    ],
)
def test_degrees_that_cannot_be_are_refused_with_what_to_do(
    degrees: dict[str, int], world: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        degrees_for(degrees, world)


def test_one_process_has_no_process_group_and_reduces_to_the_very_tensor() -> None:
    with join() as device:
        mesh = Mesh.build({}, device=device)
        x = torch.ones(3)
        assert mesh.reduce(x) is x
        assert not torch.distributed.is_initialized()
    assert mesh.device_mesh is None
    assert (mesh.rank, mesh.world, mesh.data_rank, mesh.data_ranks) == (0, 1, 0, 1)
    assert mesh.first_stage and mesh.last_stage


def describe() -> dict[str, object]:
    mesh = Mesh.build({"pipeline": 2, "replicate": 2, "shard": 2})
    mine = torch.tensor([float(mesh.rank), -float(mesh.rank)])
    device_mesh = mesh.device_mesh
    assert device_mesh is not None
    result = {
        "coordinates": tuple(mesh.coordinates[axis] for axis in AXES),
        "data": (mesh.data_rank, mesh.data_ranks),
        "ends": (mesh.first_stage, mesh.last_stage),
        "axes": device_mesh.mesh_dim_names,
        "all": mesh.reduce(mine).tolist(),
        "data sum": mesh.reduce(mine, over=("replicate", "shard")).tolist(),
        "stage max": mesh.reduce(mine, "max", over=("pipeline",)).tolist(),
        "corner min": mesh.reduce(mine, "min", over=("pipeline", "shard")).tolist(),
        "nobody": mesh.reduce(mine, over=("tensor",)) is mine,
    }
    assert mine.tolist() == [mesh.rank, -mesh.rank], "reduce changed its argument"
    return result


def test_eight_ranks_stand_where_the_axis_order_says_and_reduce_along_axes() -> None:
    for rank, found in enumerate(run_on_ranks(describe, ranks=8)):
        pipeline, replicate, shard = rank // 4, rank // 2 % 2, rank % 2
        stage = range(4 * pipeline, 4 * pipeline + 4)
        corner = [r for r in range(8) if r // 2 % 2 == replicate]
        assert found == {
            "coordinates": (pipeline, replicate, shard, 0, 0),
            "data": (2 * replicate + shard, 4),
            "ends": (pipeline == 0, pipeline == 1),
            "axes": ("pipeline", "replicate", "shard"),
            "all": [28.0, -28.0],
            "data sum": [sum(stage), -sum(stage)],
            "stage max": [rank % 4 + 4, -(rank % 4)],
            "corner min": [min(corner), -max(corner)],
            "nobody": True,
        }


def test_joining_without_a_meeting_place_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="forgepress train CONFIG --ranks"), join(rank=0, ranks=2):
        pass
    with (
        pytest.raises(ConfigError, match="rank 2 of 2 ranks"),
        join(rank=2, ranks=2, meeting="file:///nowhere"),
    ):
        pass
