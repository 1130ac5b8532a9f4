"""One rank of what was launched: joins the others, finds its place on the mesh, trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

from ..parallel import Mesh, join
from .config import RunConfig
from .loop import Trainer


def preload(config: RunConfig) -> None:
    """Imports what a run of `config` imports on its way to the first step, for processes that are copied from here.

    Nothing is begun: no thread, no group of processes, no CUDA.
    """
    for name in modules_for(config):
        with suppress(ImportError):  # said by the rank that needs it, with what to do
            import_module(name, __package__)


def modules_for(config: RunConfig) -> list[str]:
    """Modules that are imported where they are used, of those that this run will use."""
    parallel = config.parallel
    names = ["torch._dynamo", "torch.distributed.checkpoint"]  # by torch's optimizers, and by the first save
    if parallel.ranks > 1 and parallel.engine == "native":
        names.append("..parallel.spread")
        if parallel.shard > 1 or parallel.ranks > parallel.replicate:
            names += ["torch.distributed.tensor.parallel", "torch.distributed.fsdp"]
        if parallel.pipeline > 1:
            names.append("..parallel.pipeline")
    return names


def train(config: RunConfig, *, fresh: bool = False, place: Any = None) -> None:
    """Train in this process as one rank of what was launched (``place``: its ``watch`` is told the progress)."""
    with on_mesh(config, place) as mesh:
        Trainer(config, mesh=mesh, fresh=fresh, watch=getattr(place, "watch", None)).fit()


@contextmanager
def on_mesh(config: RunConfig, place: Any) -> Iterator[Mesh]:
    """The config's mesh over the ranks that were launched, until the block ends; ``place`` None: one process."""
    alone: Any = SimpleNamespace(rank=0, world=1, local_world=1)
    place = place or alone
    rank, world, here = place.rank, place.world, place.local_world
    alien = world > 1 and place.launched_by in (
        "slurm",
        "openmpi",
    )  # others leave MASTER_ADDR and MASTER_PORT
    meeting = f"tcp://{place.store_address}:{place.store_port}" if alien else None
    # Two ranks cannot share a GPU under NCCL: more ranks than GPUs is a trial of a mesh, which the CPU can do.
    device = "cuda" if 0 < here <= torch.cuda.device_count() else "cpu"
    # The watch speaks first: its message names the rank that the others wait for.
    timeout = config.parallel.timeout + 15.0
    with join(device, rank=rank, ranks=world, meeting=meeting, timeout=timeout) as device:
        yield Mesh.build(config.on(world).parallel.degrees, device=device)
