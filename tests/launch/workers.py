"""What the ranks of these tests do: tiny functions, most without torch. Started as "…/workers.py:name"."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from forgepress.errors import ConfigError, DivergenceError, Preempted
from forgepress.launch import Place


def steps(count: int, *, place: Place) -> None:
    """Some steps, as a trainer would tell them."""
    for step in range(count):
        for where in ("data", "forward", "backward"):
            place.watch.beat(step, where)
            time.sleep(0.01)


def wait_for_ever(place: Place) -> None:
    """Makes no more progress, but lives."""
    steps(3, place=place)
    while True:
        time.sleep(0.05)


def train_for_ever(place: Place) -> None:
    """Makes progress without end."""
    step = 0
    while True:
        place.watch.beat(step, "forward")
        step += 1
        time.sleep(0.02)


def who(place: Place) -> list[object]:
    print(f"rank {place.rank} speaks")
    print(f"rank {place.rank} warns", file=sys.stderr)
    return [place.rank, place.world, place.local_rank, place.local_world, place.launched_by]


def environment() -> dict[str, str]:
    return {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "PYTHONSAFEPATH", "MASTER_PORT")}


def raise_on(rank: int, *, place: Place) -> None:
    steps(3, place=place)
    if place.rank == rank:
        raise ValueError(f"rank {rank} has had enough\nand says why")
    train_for_ever(place)


def user_error_on(rank: int, *, place: Place) -> None:
    steps(3, place=place)
    if rank in (place.rank, -1):
        raise (
            DivergenceError("the loss is not finite; lower optimizer.lr")
            if rank >= 0
            else ConfigError("no such model")
        )
    train_for_ever(place)


def exit_on(rank: int, code: int, *, place: Place) -> None:
    steps(3, place=place)
    if place.rank == rank:
        os._exit(code)
    train_for_ever(place)


def kill_on(rank: int, number: int, *, place: Place) -> None:
    """This rank gets a signal that it cannot take; the others go on."""
    steps(3, place=place)
    if place.rank == rank:
        os.kill(os.getpid(), number)
    train_for_ever(place)


def hang_on(rank: int, *, place: Place) -> None:
    """One rank stops making progress at step 2, the others wait for it at step 3, as in a collective."""
    steps(3, place=place)
    if place.rank == rank:
        place.watch.beat(2, "data")
        sleep_in_the_data_loader()
    place.watch.beat(3, "backward")
    time.sleep(600)


def sleep_in_the_data_loader() -> None:
    time.sleep(600)


def slow_with_allowance(place: Place) -> str:
    """Longer than the limit without a beat, but announced."""
    steps(3, place=place)
    place.watch.beat(3, "export", allow=30.0)
    time.sleep(2.0)
    return "done"


def save_when_asked(folder: str, *, place: Place) -> None:
    """A trainer in small: SIGTERM sets a flag, the step ends, the checkpoint is written, the rank ends with 75."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: asked.append(number))
    (Path(folder) / f"ready-{place.rank}").write_text(str(os.getpid()))
    step = 0
    while not asked:
        place.watch.beat(step, "forward")
        step += 1
        time.sleep(0.02)
    (Path(folder) / f"saved-{place.rank}").write_text(json.dumps(asked))
    raise Preempted(f"stopped on request; saved at step {step}")


def never_stop(folder: str, *, place: Place) -> None:
    """Takes SIGTERM and ignores it, with a helper process that would outlive it."""
    import subprocess

    signal.signal(signal.SIGTERM, lambda number, frame: None)
    helper = subprocess.Popen(["sleep", "600"])
    (Path(folder) / f"ready-{place.rank}").write_text(f"{os.getpid()} {helper.pid}")
    train_for_ever(place)


def enter_alone(rank: int, seconds: int, *, place: Place) -> None:
    """Gloo: one rank enters an all-reduce that the others never enter; after `seconds` gloo itself gives up."""
    distributed = _join(place, seconds)
    for step in range(2):
        place.watch.beat(step, "forward")
        distributed.barrier()
    if place.rank == rank:
        place.watch.beat(2, "all-reduce")
        distributed.barrier()
    place.watch.beat(1, "data")
    time.sleep(600)


def lose_a_peer(rank: int, *, place: Place) -> None:
    """Gloo: all are in collectives when one rank is killed; the others see closed connections."""
    distributed = _join(place)
    step = 0
    while True:
        place.watch.beat(step, "all-reduce")
        distributed.barrier()
        step += 1
        if step == 5 and place.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)


def torchrun_raise(rank: int, *, place: Place) -> None:
    """The trainer's part under torchrun: SIGTERM is taken, so that only the watch can end the others."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    distributed = _join(place)
    for step in range(3):
        place.watch.beat(step, "forward")
        distributed.barrier()
    if place.rank == rank:
        raise ValueError("bad batch")
    place.watch.beat(3, "backward")
    distributed.barrier()


def torchrun_stop(rank: int, *, place: Place) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    distributed = _join(place)
    for step in range(3):
        place.watch.beat(step, "forward")
        distributed.barrier()
    if place.rank == rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    place.watch.beat(3, "backward")
    distributed.barrier()


def _join(place: Place, seconds: int = 600) -> Any:
    from datetime import timedelta

    import torch.distributed as distributed

    distributed.init_process_group(
        "gloo", rank=place.rank, world_size=place.world, timeout=timedelta(seconds=600)
    )
    if seconds < 600:  # only now: a slow start is not what is tested
        distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))
    return distributed


def torchrun_kill(rank: int, *, place: Place) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    distributed = _join(place)
    for step in range(3):
        place.watch.beat(step, "forward")
        distributed.barrier()
    if place.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    place.watch.beat(3, "backward")
    distributed.barrier()


def finish(*, place: Place) -> None:
    steps(3, place=place)
    if place.rank:
        time.sleep(1.5)
