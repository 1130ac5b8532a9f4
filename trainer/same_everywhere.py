"""What all ranks must agree on before the first step, and which of them is late in the steps after."""

from __future__ import annotations

import socket
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import DataError
from ..parallel import DATA_AXES, Mesh
from .data import RunData

_LATE = 0.1  # share of a step's time by which a rank is later than the first one, before it is called slow


def refuse_uneven_data(data: RunData, mesh: Mesh) -> None:
    """Every rank plans all batches of all ranks from the numbers of rows: with others on one, ranks would part.

    raises: DataError on all ranks, with the ranks that read another number of rows than rank 0. Collective.
    """
    if mesh.world == 1:
        return
    mine = (len(data.source), 0 if data.test is None else len(data.test), socket.gethostname())
    everyone: list[Any] = [None] * mesh.world
    dist.all_gather_object(everyone, mine)
    first = everyone[0]
    others = [(rank, theirs) for rank, theirs in enumerate(everyone) if theirs[:2] != first[:2]]
    if others:
        told = "; ".join(
            f"rank {rank} (host {host}) has {rows:,} rows and {batches:,} held-out batches"
            for rank, (rows, batches, host) in others[:4]
        )
        raise DataError(
            f"data.source is not the same everywhere: rank 0 (host {first[2]}) has {first[0]:,} rows and {first[1]:,} "
            f"held-out batches, but {told}; let all ranks read the same files"
        )


class Late:
    """Which rank keeps the others waiting: looked at in the steps that have a line in the log, and in no other.

    At the end of such a step's first forward every data rank notes how long it waits for the last one to come.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._waited = 0.0
        self.asked = False
        """Whether the forward that comes is to be looked at; must be set alike on all ranks."""

    def arrive(self) -> None:
        """This rank's forward is done. Collective over the data ranks where it was asked."""
        if not self.asked:
            return
        self.asked = False
        if self._mesh.device.type == "cuda":
            torch.cuda.synchronize(self._mesh.device)  # the device's work counts, not that it was launched
        came = time.perf_counter()
        float(self._mesh.reduce(torch.zeros((), device=self._mesh.device), "sum", DATA_AXES))
        self._waited = time.perf_counter() - came

    def slowest(self, seconds: float) -> tuple[int, float] | None:
        """(rank, seconds by which it was later than the first); None where ranks are even. Collective over the mesh.

        seconds: one step's time; ranks that hold other pipeline stages have no forward of the whole to compare.
        """
        if self._mesh.data_ranks == 1:
            return None
        waited = torch.zeros(self._mesh.world, dtype=torch.float64)
        waited[self._mesh.rank], self._waited = self._waited, 0.0
        everyone = _over_all(waited, self._mesh)
        here = everyone[everyone > 0]
        if len(here) < 2:
            return None
        late = float(here.max() - here.min())
        rank = int(torch.where(everyone > 0, everyone, torch.inf).argmin())
        return (rank, late) if late > _LATE * seconds else None


def _over_all(x: Tensor, mesh: Mesh) -> Tensor:
    return mesh.reduce(x.to(mesh.device, torch.float32), "max").cpu().double()
