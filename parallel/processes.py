"""Joining and leaving the group of processes that train together."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import ConfigError, ForgepressError
from .rounds import agent_keeps_store, round_number


@contextmanager
def join(
    device: torch.device | str = "cpu",
    *,
    rank: int | None = None,
    ranks: int | None = None,
    meeting: str | None = None,
    timeout: float = 60.0,
) -> Iterator[torch.device]:
    """Be one of `ranks` processes until the block ends; yields the device of this process.

    device:  "cpu" (gloo) or "cuda" (NCCL, and gloo for what lies on the CPU); "cuda" picks the local GPU.
    rank, ranks: left out, they are read from RANK and WORLD_SIZE as torchrun sets them (absent: one process).
    meeting: where the processes find each other: "file:///shared/file", "tcp://host:port"; left out: MASTER_ADDR
    and MASTER_PORT.   timeout: seconds after which a rank that waits for another gives up.
    raises:  ConfigError where the numbers cannot be, or nobody said where to meet; ForgepressError where too few come.
    One process never touches torch.distributed.
    """
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank
    ranks = int(os.environ.get("WORLD_SIZE", 1)) if ranks is None else ranks
    if not 0 <= rank < ranks:
        raise ConfigError(f"parallel: rank {rank} of {ranks} ranks; want 0 to {ranks - 1}")
    device = _local_device(torch.device(device), rank)
    if ranks == 1:
        yield device
        return
    if meeting is None and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"parallel: {ranks} ranks, but neither `meeting` nor MASTER_ADDR says where they meet; "
            "start them with `forgepress train CONFIG --ranks N`, torchrun or srun"
        )
    try:
        shared = meeting is None and agent_keeps_store()
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
            init_method=None if shared else meeting or "env://",
            store=_store_of_round(rank, ranks, timeout) if shared else None,
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=timeout),
        )
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise ForgepressError(_too_few(str(error), rank, ranks, meeting, timeout)) from error
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _store_of_round(rank: int, ranks: int, timeout: float) -> dist.Store:
    """The agent's store, without what ranks wrote there before an elastic restart."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    number = round_number(address, port, rank, ranks)
    store = dist.TCPStore(address, port, ranks, is_master=False, timeout=timedelta(seconds=timeout))
    return dist.PrefixStore(f"round/{number}", store)


def _too_few(error: str, rank: int, ranks: int, meeting: str | None, timeout: float) -> str:
    """What to say where the ranks have not met; torch counts those that came."""
    counted = re.search(r"(\d+)/\d+ clients joined|num_workers_joined=(\d+)", error)
    came = next((number for number in counted.groups() if number), None) if counted else None
    place = meeting or f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '?')}"
    who = (
        f"only {came} of {ranks} ranks came"
        if came
        else f"rank {rank} did not find the other {ranks - 1} ranks"
    )
    return (
        f"parallel: {who} to {place.removeprefix('tcp://')} within {timeout:g} s ({error.splitlines()[0]}); start all "
        "ranks, see that the address can be reached from every host, or use a mesh of as many ranks as there are"
    )


def _local_device(device: torch.device, rank: int) -> torch.device:
    if device.type != "cuda":
        return device
    if device.index is None:
        index = int(os.environ.get("LOCAL_RANK", rank % max(1, torch.cuda.device_count())))
        device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
