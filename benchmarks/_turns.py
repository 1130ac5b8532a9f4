"""Peers that take turns: each lives in processes of its own and runs a few hundred steps while the others sleep.

What else the machine does falls on all peers alike, and the ratio of two of them is taken within a round.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

Peer = Callable[["Turns"], None]
"""A training loop that calls ``turns()`` before every step and never ends by itself."""


@dataclass(kw_only=True)
class Turns:
    """What a peer gets: where it stands, and the call that lets it run or wait."""

    rank: int
    ranks: int
    meeting: str  # file:// where the ranks of this peer find each other
    folder: str  # this peer's own scratch folder
    steps: int  # of one turn
    pipe: Connection
    cpu: Callable[[], float] = time.process_time  # time.thread_time: the main thread's alone
    _done: int = 0
    _begun: tuple[float, float] | None = None

    def __call__(self) -> None:
        """One more step is about to begin; waits where it is another's turn. Ends the process after the last turn."""
        if self._done % self.steps == 0:
            self._wait()
        self._done += 1

    def _wait(self) -> None:
        if self._begun is None:
            self.pipe.send(("ready", 0.0, 0.0))
        else:
            wall, cpu = self._begun
            self.pipe.send(("turn", time.perf_counter() - wall, self.cpu() - cpu))
        if not self.pipe.recv():
            os._exit(0)  # without the end of a run, which is not what is measured
        self._begun = (time.perf_counter(), self.cpu())


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds a step in each round: on the wall clock, and of one rank's processor time."""

    wall: list[float]
    cpu: list[float]


def take_turns(
    peers: dict[str, Peer], *, ranks: int = 1, steps: int, rounds: int, settle: int = 2
) -> dict[str, Timing]:
    """Every peer's time a step in each of ``rounds`` rounds, after ``settle`` rounds that do not count.

    peers: functions at the top of an importable module, by name.   ranks: processes of each peer.
    The order of the peers is another one in each round. raises: RuntimeError where a peer has died.
    """
    context, order = get_context("spawn"), random.Random(0)
    timings = {name: Timing(wall=[], cpu=[]) for name in peers}
    with ExitStack() as stack:
        running: dict[str, list[Connection]] = {}
        for name, peer in peers.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            running[name] = []
            for rank in range(ranks):
                ours, theirs = context.Pipe()
                place = {"rank": rank, "ranks": ranks, "meeting": f"file://{folder}/meeting"}
                process = context.Process(
                    target=_be, args=(peer, {**place, "folder": folder, "steps": steps, "pipe": theirs})
                )
                process.start()
                stack.callback(_end, process)
                theirs.close()
                running[name].append(ours)
            _answers(name, running[name])  # ready: the next one starts up undisturbed
        for number in range(settle + rounds):
            for name in order.sample(list(running), len(running)):
                for pipe in running[name]:
                    pipe.send(True)
                answers = _answers(name, running[name])
                if number >= settle:
                    timings[name].wall.append(max(wall for _, wall, _ in answers) / steps * 1e3)
                    timings[name].cpu.append(statistics.mean(cpu for *_, cpu in answers) / steps * 1e3)
        for pipes in running.values():
            for pipe in pipes:
                pipe.send(False)
    return timings


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the ratio within each round, in the form of table.py."""
    each = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return {"value": statistics.median(each), "unit": "×", **spread(each)}


def milliseconds(times: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the time a step, in the form of table.py."""
    return {"value": statistics.median(times), "unit": "ms", **spread(times)}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The quartiles and how many values there are."""
    low, _, high = statistics.quantiles(values, n=4)
    return {"low": low, "high": high, "repeats": len(values)}


def _end(process: Any) -> None:
    process.join(10)
    process.kill()  # where another peer has died and this one waits for its turn


def _answers(name: str, pipes: Sequence[Connection]) -> list[tuple[str, float, float]]:
    try:
        return [pipe.recv() for pipe in pipes]
    except EOFError:
        raise RuntimeError(f"{name} has died; its traceback stands above") from None


def _be(peer: Peer, place: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    peer(Turns(**place))
