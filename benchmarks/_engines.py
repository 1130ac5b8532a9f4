"""One model on DeepSpeed and Accelerate, by hand as their documentation says and in our Trainer."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from forgepress.benchmarks import _loops
from forgepress.benchmarks._data import mnist
from forgepress.benchmarks._turns import Turns
from torch import Tensor, nn

WIDTH, BATCH, RATE = 1024, _loops.BATCH, _loops.RATE
MODEL = {"name": "lenet_300_100", "hidden": [WIDTH, WIDTH]}


def network() -> nn.Module:
    """784 → 1024 → 1024 → 10: 1.9 million weights, so that what is moved between ranks counts."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
    )  # fmt: skip


class _Batches:
    """Rows of MNIST in memory, in the order of a permutation, this rank's share of each batch."""

    def __init__(self, turns: Turns) -> None:
        self._inputs, self._targets = mnist(turns.folder, flatten=True)
        self._turns, self._generator, self._order = turns, torch.Generator().manual_seed(0), iter(())
        self._share = BATCH // turns.ranks

    def __call__(self) -> tuple[Tensor, Tensor]:
        rows = next(self._order, None)
        if rows is None or len(rows) < BATCH:
            self._order = iter(torch.randperm(len(self._inputs), generator=self._generator).split(BATCH))
            rows = next(self._order)
        first = self._turns.rank * self._share
        mine = rows[first : first + self._share]
        return self._inputs.index_select(0, mine), self._targets.index_select(0, mine)


def deepspeed(turns: Turns, stage: int) -> None:
    """DeepSpeed's documented loop: engine(x), engine.backward(loss), engine.step()."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    _loops._join_by_environment(turns)
    warnings.filterwarnings("ignore")
    import deepspeed as library
    from deepspeed.ops import __compatible_ops__ as operators

    operators["deepspeed_shm_comm"] = False  # as in our engine: both talk by gloo
    library.utils.logger.setLevel(logging.WARNING)
    torch.set_flush_denormal(True)  # as our Trainer does: both compute on the same kind of numbers
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    config = {
        "train_micro_batch_size_per_gpu": BATCH // turns.ranks,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    engine = library.initialize(model=model, optimizer=optimizer, config=config)[0]
    batch, note, step = _Batches(turns), _loops._Note(turns), 0
    while True:
        turns()
        x, y = batch()
        loss = F.cross_entropy(engine(x), y)
        engine.backward(loss)
        engine.step()
        step += 1
        if step % _loops.NOTE_EVERY == 0:
            note(step, loss.item())


def accelerate(turns: Turns) -> None:
    """Accelerate's documented loop around DDP, rows from memory."""
    from accelerate import Accelerator

    _loops._join_by_environment(turns)
    torch.set_flush_denormal(True)
    accelerator = Accelerator(cpu=True)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    batch, note, step = _Batches(turns), _loops._Note(turns), 0
    while True:
        turns()
        x, y = batch()
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        step += 1
        if step % _loops.NOTE_EVERY == 0:
            note(step, loss.item())


def ours(turns: Turns, parallel: dict[str, Any], technique: dict[str, Any] | None) -> None:
    """The whole Trainer with that engine."""
    _loops.train(turns, model=MODEL, flatten=True, technique=technique, parallel=parallel)


def zero(stage: int, technique: dict[str, Any] | None = None) -> Any:
    """Our Trainer on ZeRO of this stage, two ranks."""
    parallel = {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": stage}}
    return functools.partial(ours, parallel=parallel, technique=technique)


def prepared() -> Any:
    """Our Trainer on Accelerate's DDP, two ranks."""
    return functools.partial(ours, parallel={"engine": "accelerate", "replicate": 2}, technique=None)


def by_hand(stage: int) -> Any:
    """DeepSpeed's own loop."""
    return functools.partial(deepspeed, stage=stage)
