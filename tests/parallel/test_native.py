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
