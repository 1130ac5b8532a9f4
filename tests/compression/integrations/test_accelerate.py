"""An Accelerate loop on several ranks comes to the zeros of one process, and its checkpoints hold the state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.compression.integrations import Compressor
from forgepress.tests.compression.integrations import hosts
from forgepress.tests.compression.integrations.hosts import (
    CLIP,
    INPUTS,
    LABELS,
    RATE,
    STEPS,
    Net,
    assert_same,
)
from forgepress.tests.ranks import run_on_ranks
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("accelerate", reason="the Accelerate loop needs accelerate")


def train(folder: str, stop: int = 0, resume: bool = False) -> dict[str, Tensor]:
    """Weights after the training: all rows in two micro-batches a step, dealt over the ranks by Accelerate."""
    import warnings

    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    warnings.simplefilter("ignore")
    ranks, before = 1, dict(os.environ)
    if torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        rank = str(torch.distributed.get_rank())
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")  # the ranks have met already
    try:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        assert accelerator.num_processes == ranks
        model = Net()
        compressor = Compressor(model, hosts.phases(), steps=STEPS, micro_batches=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
        loader = DataLoader(TensorDataset(INPUTS, LABELS), 12 // ranks)
        wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        accelerator.register_for_checkpointing(compressor)
        first = 0
        if resume:
            accelerator.load_state(folder)
            first = stop
        for step in range(first, STEPS):
            if stop and not resume and step == stop:
                accelerator.save_state(folder)
                break
            _step(accelerator, compressor, wrapped, optimizer, loader)
        else:
            compressor.finish()
        return hosts.weights(model)
    finally:  # the process goes on to other tests
        os.environ.clear()
        os.environ.update(before)
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


def _step(accelerator: Any, compressor: Compressor, model: Any, optimizer: Any, loader: Any) -> None:
    for x, y in loader:  # an epoch is a step
        with accelerator.accumulate(model):
            compressor.before_step(optimizer.param_groups[0]["lr"])
            accelerator.backward(model(x, y)["loss"])
            if accelerator.sync_gradients:
                compressor.after_backward(CLIP)
                optimizer.step()
                compressor.after_step()
                optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore")
def test_one_rank_and_two_come_to_the_zeros_of_a_plain_loop(tmp_path: Path) -> None:
    alone = Net()
    hosts.plain(alone)
    assert_same(train(str(tmp_path)), hosts.weights(alone), rtol=1e-4, atol=1e-6)
    for found in run_on_ranks(train, str(tmp_path), ranks=2):
        assert_same(found, hosts.weights(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_accelerate_s_own_checkpoint_holds_what_the_techniques_need(tmp_path: Path) -> None:
    whole = train(str(tmp_path))
    train(str(tmp_path), stop=5)
    assert_same(train(str(tmp_path), stop=5, resume=True), whole, rtol=0, atol=0)
