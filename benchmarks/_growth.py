"""A model of as many tensors as asked for, trained by hand and in our Trainer."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from forgepress.benchmarks import _loops
from forgepress.benchmarks._data import mnist
from forgepress.benchmarks._turns import Turns
from torch import nn
from torch.nn.parallel import DistributedDataParallel

NARROW = 16


def chain(layers: int) -> nn.Module:
    """784 → 16 → … → 10 in `layers` matrices, each with a bias: two tensors a layer, little arithmetic."""
    torch.manual_seed(0)
    middle = [part for _ in range(layers - 2) for part in (nn.Linear(NARROW, NARROW), nn.ReLU())]
    return nn.Sequential(nn.Linear(784, NARROW), nn.ReLU(), *middle, nn.Linear(NARROW, 10))


def by_hand(turns: Turns, layers: int) -> None:
    """A plain loop, DDP on several ranks."""
    torch.set_flush_denormal(True)
    inputs, targets = mnist(turns.folder, flatten=True)
    model: nn.Module = chain(layers)
    if turns.ranks > 1:
        place: dict[str, Any] = {"rank": turns.rank, "world_size": turns.ranks}
        dist.init_process_group("gloo", init_method=turns.meeting, **place)
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=_loops.RATE, fused=True)
    share, generator = _loops.BATCH // turns.ranks, torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(inputs), generator=generator)
        for begin in range(turns.rank * share, len(inputs), _loops.BATCH):
            turns()
            index = order[begin : begin + share]
            loss = F.cross_entropy(model(inputs.index_select(0, index)), targets.index_select(0, index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def ours(turns: Turns, layers: int, axis: str, technique: dict[str, Any] | None) -> None:
    """The whole Trainer."""
    model = {"factory": "forgepress.benchmarks._growth:chain", "args": {"layers": layers}}
    parallel = {axis: turns.ranks}
    _loops.train(turns, model=model, flatten=True, technique=technique, parallel=parallel)


def peers(tensors: int, technique: dict[str, Any]) -> dict[str, Any]:
    """By hand, our Trainer, and our Trainer with a technique, for a model of so many tensors."""
    layers = tensors // 2
    return {
        "by hand": functools.partial(by_hand, layers=layers),
        "forgepress": functools.partial(ours, layers=layers, axis="replicate", technique=None),
        "forgepress, pruning": functools.partial(ours, layers=layers, axis="replicate", technique=technique),
    }
