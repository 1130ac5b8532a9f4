"""The global gradient norm, clipping by it, and what is said when it is not finite."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.compression import Run, weights_of
from forgepress.dataloading import Batch
from forgepress.errors import DivergenceError
from forgepress.parallel import Mesh
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import config_of
from forgepress.trainer.config import RunConfig
from forgepress.trainer.gradients import blame, clip, global_norm
from forgepress.trainer.loop import Trainer
from torch import nn

MESHES: dict[str, dict[str, int]] = {
    "one process": {},
    "pipeline=2": {"pipeline": 2},
    "tensor=2": {"tensor": 2},
    "shard=2": {"shard": 2},
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False))


def test_norm_and_clipping_are_those_of_torch() -> None:
    ours, theirs = model(), model()
    for each in (ours, theirs):
        each(torch.ones(4, 3)).square().sum().backward()
    weights = weights_of(dict(ours.named_parameters()))
    for weight in weights:
        weight.take_grad()
    norm = global_norm(Run(weights, steps=1))
    clip(weights, norm, 0.25)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.25)
    torch.testing.assert_close(norm, expected)
    for weight, parameter in zip(weights, theirs.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, parameter.grad)


def test_the_first_parameter_in_the_models_order_is_named() -> None:
    held = model()
    names = [name for name, _ in held.named_parameters()]
    for parameter in held.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weights = weights_of(dict(held.named_parameters()))
    for weight in weights:
        weight.take_grad()
    run = Run(weights, steps=1)
    assert blame(run, names, Mesh()) == "no parameter (the loss alone)"
    for name in ("1.weight", "0.bias"):
        gradient = dict(held.named_parameters())[name].grad
        assert gradient is not None
        gradient.view(-1)[-1] = float("inf")
        assert blame(run, names, Mesh()) == name


class Poisoned(Trainer):
    """One sample of the third batch is NaN, on the data rank that has it."""

    def _phases(self, stream: Iterator[Batch]) -> None:
        super()._phases(self._poison(stream))

    def _poison(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(stream, start=1):
            if number == 3 and self.mesh.data_rank == 0:
                inputs = batch.columns["inputs"].clone()
                inputs[0] = float("nan")
                batch = replace(batch, columns={**batch.columns, "inputs": inputs})
            yield batch


def session(kind: type[Trainer], values: dict[str, Any]) -> str:
    """One rank of a run; the message of the DivergenceError that ends it, or ''."""
    config = RunConfig.model_validate(values)
    try:
        kind(config, mesh=Mesh.build(config.parallel.degrees)).fit()
    except DivergenceError as error:
        return str(error)
    return ""


def poisoned(folder: Path, mesh: str, **optimizer: Any) -> RunConfig:
    phases = [{"name": "train", "steps": 6, "techniques": [{"name": "pruning.magnitude", "sparsity": 0.3}]}]
    settings = {"name": "adamw", "lr": 0.01, "clip_norm": 1.0, **optimizer}
    return config_of(folder, MESHES[mesh], phases=phases, optimizer=settings, tracking={"every": 1})


@pytest.mark.parametrize("mesh", MESHES)
def test_a_nan_in_the_data_stops_all_ranks_naming_step_phase_and_parameter(tmp_path: Path, mesh: str) -> None:
    config = poisoned(tmp_path / "run", mesh)
    messages = run_on_ranks(session, Poisoned, config.model_dump(mode="json"), ranks=config.parallel.ranks)
    assert len(set(messages)) == 1
    assert messages[0].startswith(
        "step 3 (phase train): the gradient is not finite, first in fc1.weight; loss nan"
    )


@pytest.mark.parametrize("mesh", MESHES)
def test_with_skip_that_step_moves_nothing_and_is_counted(tmp_path: Path, mesh: str) -> None:
    config = poisoned(tmp_path / "run", mesh, nonfinite="skip")
    messages = run_on_ranks(session, Poisoned, config.model_dump(mode="json"), ranks=config.parallel.ranks)
    assert messages == [""] * config.parallel.ranks
    lines = [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]
    train = {line["step"]: line for line in lines if line["kind"] == "train"}
    assert [train[step].get("skipped_steps") for step in range(1, 7)] == [None, None, 1, 1, 1, 1]
    assert train[6]["loss"] < train[1]["loss"]


def test_a_learning_rate_that_is_far_too_high_is_named_too(tmp_path: Path) -> None:
    config = poisoned(tmp_path / "run", "one process", name="sgd", lr=1e30, clip_norm=None)
    message = session(Trainer, config.model_dump(mode="json"))
    assert "(phase train): the gradient is not finite, first in fc1.weight" in message
    assert "Lower optimizer.lr" in message
