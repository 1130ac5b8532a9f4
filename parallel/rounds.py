"""One start of the ranks under torchrun, told apart from the starts before it, whose words are still in the store.

torchrun's agent keeps one store through elastic restarts, and torch writes into it under the same names every time: a
rank that is quick reads where its neighbour listened before the restart. TORCHELASTIC_RESTART_COUNT does not help, as
every host counts its own failures alone (pytorch issues 135712, 167288). So the ranks first agree on a number.
"""

import functools
import json
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import ForgepressError

if TYPE_CHECKING:
    from torch.distributed import Store

COUNT = "TORCHELASTIC_RESTART_COUNT"
MEET = 300.0  # seconds to wait for the others at the start: they may still be importing


def agent_keeps_store() -> bool:
    """Does an agent of torchrun hold the store, so that it outlives the ranks?"""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@functools.cache  # a process is started once: its watch and its process group are of the same round
def round_number(address: str, port: int, rank: int, ranks: int) -> int:
    """How often these ranks have been started before by an agent of torchrun: the same number on all of them.

    TORCHELASTIC_RESTART_COUNT, which each host else counts for itself, is set to it in this process.
    raises: ForgepressError naming who has not come within five minutes; torch's error where there is no store.
    cost:   a few messages a rank.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    store = TCPStore(address, port, ranks, is_master=False, timeout=timedelta(seconds=MEET))
    number = agree(store, rank, ranks, MEET)
    os.environ[COUNT] = str(number)
    return number


def agree(store: "Store", rank: int, ranks: int, timeout: float) -> int:
    """The number of this round, from a store that may hold the words of earlier ones. raises: as `round_number`."""
    return _invite(store, ranks, timeout) if rank == 0 else _follow(store, rank, timeout)


def _invite(store: "Store", ranks: int, timeout: float) -> int:
    """Rank 0: tells the number to everybody who says hello, until all have answered.

    A hello may be of a rank that has died before the restart. Its heir says another one, and is told the number then.
    """
    last = json.loads(store.get("round"))["number"] if store.check(["round"]) else -1
    number = max(last + 1, int(os.environ.get(COUNT) or 0))
    heard: dict[str, str] = {}
    missing: list[int] = []
    store.set("round", json.dumps({"number": number, "heard": heard}))
    for _ in _looks(timeout):
        said = {
            str(other): store.get(f"hello/{other}").decode()
            for other in range(1, ranks)
            if store.check([f"hello/{other}"])
        }
        if said != heard:
            heard = said
            store.set("round", json.dumps({"number": number, "heard": heard}))
        missing = [
            other
            for other in range(1, ranks)
            if str(other) not in heard or not store.check([f"here/{number}/{heard[str(other)]}"])
        ]
        if not missing:
            return number
    raise ForgepressError(
        f"parallel: rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} of {ranks} did not come within "
        f"{timeout:g} s of being started by torchrun; see their logs"
    )


def _follow(store: "Store", rank: int, timeout: float) -> int:
    """Another rank: says hello until rank 0 of this very round has heard it."""
    hello = uuid.uuid4().hex
    store.set(f"hello/{rank}", hello)
    for _ in _looks(timeout):
        if not store.check(["round"]):
            continue
        found: dict[str, Any] = json.loads(store.get("round"))
        if found["heard"].get(str(rank)) == hello:
            store.set(f"here/{found['number']}/{hello}", "")
            return found["number"]
    raise ForgepressError(
        f"parallel: rank {rank} has not heard of rank 0 within {timeout:g} s of being started by torchrun; "
        "see rank 0's log"
    )


def _looks(timeout: float) -> Iterator[None]:
    """Again and again until the time is over, more and more slowly."""
    end, pause = time.monotonic() + timeout, 0.01
    while time.monotonic() < end:
        yield
        time.sleep(pause)
        pause = min(2 * pause, 0.25)
