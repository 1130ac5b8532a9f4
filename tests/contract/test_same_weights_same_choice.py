"""From the same weights, every mesh chooses what one process chooses, bit for bit: masks, grids, kept units.

The learning rate is zero, so that weights stay those of the seed and no sum in another order can hide a choice.
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.tests.meshes import MESHES
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import config_of, session
from forgepress.trainer.config import RunConfig
from forgepress.trainer.verify import read_trace
from torch import Tensor

NETS = "forgepress.tests.removals:"
ONE_LIST = [
    {"name": "pruning.magnitude", "sparsity": 0.7, "end": 1, "match": ["fc1.weight"]},
    {"name": "pruning.network_surgery", "sparsity": 0.6, "end": 1, "match": ["fc2.weight"]},
    {
        "name": "quantization.aware_training",
        "match": ["fc1.weight", "fc3.weight"],
        "weight_bits": 4,
        "edge_bits": 4,
        "activations": "none",
    },
]
CASES: dict[str, dict[str, Any]] = {
    "masks and grids": {"model": {"name": "lenet_300_100"}, "techniques": ONE_LIST},
    "channels": {
        "model": {"factory": f"{NETS}convolutions"},
        "techniques": [{"name": "pruning.network_slimming", "share": 0.4, "multiple": 4, "strength": 0.02}],
    },
    "heads and neurons": {
        "model": {"factory": f"{NETS}attention"},
        "techniques": [{"name": "pruning.structured", "score": "l2", "multiple": 4, "heads_multiple": 2}],
    },
}


def chosen(case: str, degrees: dict[str, int], folder: Path) -> tuple[dict[str, Tensor], list[Any]]:
    """What the run's techniques have decided: their saved state with the weights, and the record of what is kept."""
    values = CASES[case]
    phases = [{"name": "choose", "steps": 2, "techniques": values["techniques"]}, {"name": "end", "steps": 1}]
    config = config_of(
        folder / "run",
        degrees,
        model=values["model"],
        optimizer={"name": "sgd", "lr": 0.0},
        data={"source": "digits", "batch": 30, "tail": "drop"},
        phases=phases,
    )
    ranks_run(config)
    tensors = {k: t for k, t in read_trace(config.run_folder).tensors.items() if "/buffer/" not in k}
    plan = json.loads((config.run_folder / "checkpoints/step-3/state.json").read_text())["plan"]
    return tensors, [entry["record"].get("kept") for entry in plan]


def ranks_run(config: RunConfig) -> None:
    run_on_ranks(session, config.model_dump(mode="json"), 0, ranks=config.parallel.ranks)


@functools.cache
def alone(case: str) -> tuple[dict[str, Tensor], list[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return chosen(case, {}, Path(folder))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("case", CASES)
def test_every_mesh_chooses_what_one_process_chooses(case: str, mesh: str, tmp_path: Path) -> None:
    tensors, kept = chosen(case, MESHES[mesh], tmp_path)
    reference, kept_alone = alone(case)
    assert kept == kept_alone
    assert tensors.keys() == reference.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, reference[name])] == []


def test_something_was_chosen() -> None:
    tensors, _ = alone("masks and grids")
    masks = [t for t in tensors.values() if t.dtype == torch.bool]
    assert masks and all(0 < int(mask.sum()) < mask.numel() for mask in masks)
    assert any("scale" in name for name in tensors)
    for case in ("channels", "heads and neurons"):
        assert any(alone(case)[1])
