"""Threads or a process: decided by what the work at hand does with Python's lock."""

import threading
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from .making import Maker
from .plan import Group

_SECONDS = 0.2  # spent on measuring, at most
_CHEAP = 0.002  # seconds of a read below which threads are good enough
_SCALES = 1.3  # two threads make so many times what one makes, or the work holds the lock


def choose_mode(mode: str, maker: Maker, groups: Iterator[Group], threads: int) -> str:
    """thread or process. `auto` looks at work that may hold Python's lock, and measures it in one and two threads.

    The choice changes no batch.
    """
    suspected = maker.transform is not None or getattr(maker.source, "holds_lock", False)
    if mode != "auto":
        return mode
    if not suspected or threads < 2:
        return "thread"
    group = next(groups)
    quiet = Maker(**{**_fields(maker), "meter": type(maker.meter)()})  # what is measured is no work done
    begin = perf_counter()
    quiet(group)
    once = perf_counter() - begin
    if once < _CHEAP:
        return "thread"
    alone, both = _rate(quiet, group, 1), _rate(quiet, group, 2)
    return "thread" if both > _SCALES * alone else "process"


def _rate(maker: Maker, group: Group, threads: int) -> float:
    """Groups made in a second."""
    made = [0] * threads
    begin = perf_counter()

    def work(number: int) -> None:
        while True:
            maker(group)
            made[number] += 1
            if perf_counter() - begin > _SECONDS / 2:
                return

    others = [threading.Thread(target=work, args=(number,)) for number in range(1, threads)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()
    return sum(made) / (perf_counter() - begin)


def _fields(maker: Maker) -> dict[str, Any]:
    names = ("source", "seed", "meter", "augment", "transform", "packed", "pinned")
    return {name: getattr(maker, name) for name in names}
