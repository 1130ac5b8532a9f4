"""One GPT on one axis at a time: by hand with torch's own parallelism, and in our Trainer."""

from __future__ import annotations

import functools
import os
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from forgepress.benchmarks import _loops
from forgepress.benchmarks._turns import Turns
from forgepress.parallel import Mesh, join
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer
from forgepress.trainer.models import build_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

BATCH, LENGTH, MICROBATCHES, RATE = 32, 64, 4, 1e-3
VOCABULARY = string.ascii_lowercase + " "
MODEL: dict[str, Any] = {
    "name": "gpt",
    "vocabulary": len(VOCABULARY),
    "context": LENGTH,
    "layers": 4,
    "width": 128,
    "heads": 4,
}
COLUMNS = ("attention.query", "attention.key", "attention.value", "mlp.up")
ROWS = ("attention.out", "mlp.down")


def text_file(folder: str) -> Path:
    """A million random letters."""
    path = Path(folder) / "letters.txt"
    if not path.is_file():
        new = path.with_suffix(f".{os.getpid()}")  # every rank may be at it
        new.write_text("".join(random.Random(0).choices(VOCABULARY, k=1_000_000)))
        new.rename(path)
    return path


class Batches:
    """Windows of that text in memory: rows of tokens and of the tokens that follow."""

    def __init__(self, share: int, ranks: int, rank: int) -> None:
        numbers = torch.randint(
            0, len(VOCABULARY), (15_000, LENGTH + 1), generator=torch.Generator().manual_seed(0)
        )
        self._rows, self._share, self._skip = numbers, share, rank * share
        self._step, self._order = share * ranks, iter(())
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self) -> tuple[Tensor, Tensor]:
        numbers = next(self._order, None)
        if numbers is None or len(numbers) < self._step:
            self._order = iter(torch.randperm(len(self._rows), generator=self._generator).split(self._step))
            numbers = next(self._order)
        mine = self._rows.index_select(0, numbers[self._skip : self._skip + self._share])
        return mine[:, :-1], mine[:, 1:].contiguous()


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# ── by hand


def _world(turns: Turns) -> DeviceMesh:
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=turns.meeting, rank=turns.rank, world_size=turns.ranks)
    return init_device_mesh("cpu", (turns.ranks,))


def _loop(turns: Turns, model: nn.Module, batch: Batches) -> None:
    # one call of the kernel takes DTensors or plain tensors
    kinds = [
        [p for p in model.parameters() if isinstance(p, DTensor) is divided] for divided in (True, False)
    ]
    optimizer = torch.optim.Adam([{"params": kind} for kind in kinds if kind], lr=RATE, fused=True)
    note, step = _loops._Note(turns), 0
    while True:
        turns()
        x, y = batch()
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % _loops.NOTE_EVERY == 0:
            note(step, loss.item())


def fsdp(turns: Turns) -> None:
    """FSDP2 as its tutorial does it: every block, then the whole."""
    from torch.distributed.fsdp import fully_shard

    mesh, model = _world(turns), build_model(MODEL).module
    for name, _ in model.named_modules():
        if name.startswith("blocks.") and name.count(".") == 1:
            fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    _loop(turns, model, Batches(BATCH // turns.ranks, turns.ranks, turns.rank))


def tensor(turns: Turns) -> None:
    """Columns and rows of each block's matrices, by parallelize_module."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh, model = _world(turns), build_model(MODEL).module
    for number in range(MODEL["layers"]):
        plan: dict[str, Any] = {name: ColwiseParallel() for name in COLUMNS}
        plan |= {name: RowwiseParallel() for name in ROWS}
        parallelize_module(model.get_submodule(f"blocks.{number}"), mesh, plan)
    _loop(turns, model, Batches(BATCH, 1, 0))


def pipeline(turns: Turns) -> None:
    """1F1B over two stages that are written out."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    _world(turns)
    whole: Any = build_model(MODEL).module
    half = MODEL["layers"] // 2
    blocks = list(whole.blocks)
    parts = ([whole.embed, *blocks[:half]], [*blocks[half:], whole.norm, whole.head])
    part = nn.Sequential(*parts[turns.rank])
    stage = PipelineStage(part, turns.rank, turns.ranks, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICROBATCHES, loss_fn=loss_of)
    optimizer = torch.optim.Adam(part.parameters(), lr=RATE, fused=True)
    batch, note, step = Batches(BATCH, 1, 0), _loops._Note(turns), 0
    while True:
        turns()
        x, y = batch()
        losses: list[Tensor] = []
        optimizer.zero_grad()
        if turns.rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=y, losses=losses)
        optimizer.step()
        step += 1
        if step % _loops.NOTE_EVERY == 0 and losses:
            note(step, torch.stack(losses).mean().item())


# ── ours


def ours(turns: Turns, parallel: dict[str, Any]) -> None:
    """The whole Trainer on that axis."""
    values = {
        "name": "timed",
        "model": MODEL,
        "data": {"source": {"text": str(text_file(turns.folder)), "length": LENGTH}, "batch": BATCH},
        "parallel": parallel,
        "optimizer": {"name": "adam", "lr": RATE},
        "phases": [{"name": "timed", "steps": 10_000_000}],
        "tracking": {"every": _loops.NOTE_EVERY},
        "checkpoint": {"folder": f"{turns.folder}/runs"},
    }
    config = RunConfig.model_validate(values)
    with join("cpu", rank=turns.rank, ranks=turns.ranks, meeting=turns.meeting) as device:
        mesh = Mesh.build(config.parallel.degrees, device=device)
        Trainer(config, mesh=mesh, watch=_loops.Watch(turns)).fit()


def on(**parallel: Any) -> Callable[[Turns], None]:
    """Our Trainer with these keys of `parallel`."""
    return functools.partial(ours, parallel=parallel)
