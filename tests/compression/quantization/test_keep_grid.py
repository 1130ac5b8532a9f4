"""Grids and zeros that a phase delivers stay through the phases after it, on every mesh and across a resume."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from forgepress.compression.quantization.grid import off_grid
from forgepress.compression.quantization.keep_grid import KeepGrid
from forgepress.compression.quantization.post_training import PostTraining
from forgepress.errors import NoOpError
from forgepress.tests.compression.quantization.small import Training, network, rows
from forgepress.tests.sessions import config_of, run
from forgepress.trainer.config import RunConfig
from forgepress.trainer.verify import Trace, compare

SURGERY = {"name": "pruning.network_surgery", "sparsity": 0.5, "every": 1, "stop": 4}
AWARE = {"name": "quantization.aware_training", "weight_bits": 4, "edge_bits": 4, "freeze": 3}
PHASES = [
    {"name": "dense", "steps": 2},
    {"name": "small", "steps": 5, "techniques": [SURGERY, AWARE]},
    {"name": "tune", "steps": 4},
]
LAYERS = ("fc1", "fc2", "fc3")


def config(folder: Path, degrees: dict[str, int]) -> RunConfig:
    return config_of(folder, degrees, phases=PHASES)


@functools.cache
def alone() -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        return run(config(Path(folder) / "alone", {}))


def assert_small(trace: Trace, phase: int) -> None:
    """All weights are on 4-bit grids, half of them zero, at the end of that phase."""
    zeros = count = 0
    for layer in LAYERS:
        weight = trace.tensors[f"end-{phase}/model/{layer}.weight"]
        scale = trace.tensors[f"end-{phase}/buffer/{layer}.weight_scale"]
        assert int(off_grid(weight, scale, None, 4)) == 0
        zeros, count = zeros + int((weight == 0).sum()), count + weight.numel()
    assert zeros >= round(0.5 * count)


def test_a_later_phase_trains_on_the_same_grids_with_the_same_zeros() -> None:
    trace = alone()
    assert_small(trace, 2)
    moved = 0
    for layer in LAYERS:
        scale = trace.tensors[f"end-2/buffer/{layer}.weight_scale"]
        levels = [trace.tensors[f"end-{phase}/model/{layer}.weight"] / scale for phase in (1, 2)]
        moved += int((levels[0] - levels[1]).abs().round().count_nonzero())
    assert moved  # it did go on learning


@pytest.mark.parametrize(
    "degrees",
    [{"tensor": 2}, {"shard": 3}, {"pipeline": 2, "shard": 2}, {"shard": 2, "tensor": 2}],
    ids=lambda degrees: " x ".join(f"{axis}={n}" for axis, n in degrees.items()),
)
def test_surgery_and_grids_in_one_list_give_the_weights_of_one_process(
    degrees: dict[str, int], tmp_path: Path
) -> None:
    there = run(config(tmp_path / "run", degrees))
    assert_small(there, 2)
    difference = compare(alone(), there)
    assert difference.within() and difference.masks == 0.0, difference


def test_a_weight_that_leaves_its_grid_is_found() -> None:
    training = Training(network(), [PostTraining(activations="none")], steps=1)
    training.step(*rows(1))
    training.deliver()
    later = Training(training.model, [KeepGrid()], steps=4)
    later.steps(2)
    later.chain.demand()
    with torch.no_grad():
        next(later.model.parameters()).add_(0.001)
    with pytest.raises(NoOpError, match="weights off their grid"):
        later.chain.demand()
