"""A model trained on any mesh has the losses, gradients and weights of one process."""

from typing import Any

import pytest
import torch
from forgepress.tests.parallel.toys import train
from forgepress.tests.ranks import run_on_ranks


def assert_same_training(here: dict[str, Any], there: dict[str, Any]) -> None:
    for kind in ("gradients", "state", "buffers"):
        assert here[kind].keys() == there[kind].keys()
        for name, tensor in here[kind].items():
            torch.testing.assert_close(
                there[kind][name], tensor, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )
    torch.testing.assert_close(there["losses"], here["losses"], rtol=1e-10, atol=1e-12)


def check(name: str, ranks: int, degrees: dict[str, int], **options: Any) -> None:
    whole = train(name, {}, rows=options.get("rows", 17), microbatches=options.get("microbatches", 1))
    assert_same_training(whole, run_on_ranks(train, name, degrees, ranks=ranks, **options)[0])


DATA_MESHES = [
    pytest.param(2, {"replicate": 2}, id="replicate2"),
    pytest.param(3, {"replicate": 3}, id="replicate3"),
    pytest.param(2, {"shard": 2}, id="shard2"),
    pytest.param(3, {"shard": 3}, id="shard3"),
    pytest.param(4, {"shard": 4}, id="shard4"),
    pytest.param(4, {"replicate": 2, "shard": 2}, id="replicate2-shard2"),
]


@pytest.mark.parametrize(("ranks", "degrees"), DATA_MESHES)
@pytest.mark.parametrize("microbatches", [1, 3])
def test_data_axes_train_as_one_process_with_a_ragged_batch(
    ranks: int, degrees: dict[str, int], microbatches: int
) -> None:
    check("mlp", ranks, degrees, microbatches=microbatches)


@pytest.mark.parametrize(("ranks", "degrees"), DATA_MESHES[:1] + DATA_MESHES[3:])
def test_batch_normalisation_on_data_axes_is_that_of_one_process(ranks: int, degrees: dict[str, int]) -> None:
    check("conv", ranks, degrees, microbatches=2)


def test_batch_normalisation_holds_when_a_rank_has_no_rows() -> None:
    check("conv", 4, {"replicate": 2, "shard": 2}, rows=3)


@pytest.mark.parametrize(
    ("ranks", "degrees"),
    [
        (2, {"tensor": 2}),
        (4, {"shard": 2, "tensor": 2}),
        (4, {"replicate": 2, "tensor": 2}),
        (8, {"replicate": 2, "shard": 2, "tensor": 2}),
    ],
)
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_tensor_parallel_products_train_as_one_process(
    name: str, ranks: int, degrees: dict[str, int]
) -> None:
    check(name, ranks, degrees, microbatches=2)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved1f1b"])
@pytest.mark.parametrize(
    ("ranks", "degrees"),
    [
        (2, {"pipeline": 2}),
        (3, {"pipeline": 3}),
        (4, {"pipeline": 2, "shard": 2}),
        (4, {"pipeline": 2, "replicate": 2}),
        (4, {"pipeline": 2, "tensor": 2}),
        (8, {"pipeline": 2, "shard": 2, "tensor": 2}),
        (8, {"pipeline": 2, "replicate": 2, "shard": 2}),
    ],
)
def test_pipeline_products_train_as_one_process(ranks: int, degrees: dict[str, int], schedule: str) -> None:
    microbatches = 6 if degrees["pipeline"] == 3 else 4
    check("transformer", ranks, degrees, microbatches=microbatches, schedule=schedule)
