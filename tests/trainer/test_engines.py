"""Runs on other libraries' engines: offload, half precision, phases, frozen weights, and one run on all of them."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from forgepress.tests.sessions import OWN, config_of, run
from forgepress.trainer.config import RunConfig
from forgepress.trainer.precision import computes_fp16
from forgepress.trainer.verify import Trace, compare

MAGNITUDE = {"name": "pruning.magnitude", "sparsity": 0.5, "end": 0.7, "every": 1}
DENSE_THEN_SPARSE = [{"name": "dense", "steps": 3}, {"name": "prune", "steps": 3, "techniques": [MAGNITUDE]}]
OTHER_OPTIMIZER = [
    {"name": "adam", "steps": 2},
    {"name": "sgd", "steps": 3, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
]
REMOVAL = [
    {"name": "shrink", "steps": 3, "techniques": [{"name": f"{OWN}RemoveNeurons", "keep": 6}]},
    {"name": "tune", "steps": 3},
]
FACTORY = "forgepress.tests.techniques:frozen_and_normalised"
FROZEN = {"model": {"factory": FACTORY, "args": {"hidden": 16}}}
RUNS: dict[str, dict[str, Any]] = {
    "dense then sparse": {"phases": DENSE_THEN_SPARSE},
    "frozen, normalised": {"phases": DENSE_THEN_SPARSE, **FROZEN},
    "removal": {"phases": REMOVAL},
    "another optimizer": {"phases": OTHER_OPTIMIZER},
    "plain": {"phases": [{"name": "dense", "steps": 5}]},
}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    axis = "replicate" if stage == 0 else "shard"
    return {"engine": "deepspeed", axis: 2, "deepspeed": {"stage": stage, **more}}


def accelerate(axis: str, **own: Any) -> dict[str, Any]:
    return {"engine": "accelerate", axis: 2, "accelerate": {"config": own}}


ENGINES: dict[str, dict[str, Any]] = {
    "zero-0": zero(0),
    "zero-1": zero(1),
    "zero-2, offload": zero(2, offload_optimizer=True),
    "zero-3": zero(3),
    "zero-3, offload": zero(3, offload_optimizer=True, offload_parameters=True),
    "accelerate, ddp": accelerate("replicate", distributed_type="MULTI_CPU"),
    "accelerate, fsdp2": accelerate("shard"),
    "accelerate, deepspeed": accelerate(
        "shard", distributed_type="DEEPSPEED", deepspeed_config={"zero_stage": 2}
    ),
}


def config(case: str, parallel: dict[str, Any], folder: Path, **more: Any) -> RunConfig:
    return config_of(folder, parallel, **{**RUNS[case], **more})


@functools.cache
def alone(case: str) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        return run(config(case, {}, Path(folder) / "alone"))


@pytest.mark.parametrize(
    ("engine", "case"),
    [
        ("zero-0", "dense then sparse"),
        ("zero-1", "frozen, normalised"),
        ("zero-2, offload", "dense then sparse"),
        ("zero-3", "frozen, normalised"),
        ("zero-3", "another optimizer"),
        ("zero-3", "removal"),
        ("accelerate, fsdp2", "removal"),
        ("zero-3, offload", "dense then sparse"),
        ("accelerate, ddp", "frozen, normalised"),
        ("accelerate, deepspeed", "plain"),
    ],
)
def test_gives_the_numbers_of_one_process(engine: str, case: str, tmp_path: Path) -> None:
    difference = compare(alone(case), run(config(case, ENGINES[engine], tmp_path / "run")))
    assert difference.within(), difference
    assert difference.masks == 0.0


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        pytest.param(
            2, "fp16", marks=pytest.mark.skipif(not computes_fp16(), reason="this processor computes no fp16")
        ),
        (3, "bf16"),
    ],
)
def test_half_precision_stays_near_full_precision(stage: int, precision: str, tmp_path: Path) -> None:
    trace = run(config("dense then sparse", zero(stage), tmp_path / "run", precision=precision))
    assert len(trace.steps) == 6
    for step, (loss, norm) in alone("dense then sparse").steps.items():
        assert trace.steps[step][0] == pytest.approx(loss, rel=0.03)
        assert trace.steps[step][1] == pytest.approx(norm, rel=0.1)


def test_one_run_goes_through_all_engines_and_ends_in_one_process(tmp_path: Path) -> None:
    case, names = "dense then sparse", ["zero-3", "accelerate, fsdp2", "zero-1"]
    folder = tmp_path / "run"
    more = {"checkpoint": {"every": 1}}
    for step, name in enumerate(names, start=1):
        run(config(case, ENGINES[name], folder, **more), stop_at=step if step != 3 else 4)
    difference = compare(alone(case), run(config(case, {}, folder, **more)))
    assert difference.within(), difference
    assert difference.masks == 0.0
