"""Loaders that take turns over the same data: rows a second after the first batch, and processor time a row."""

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
from forgepress.benchmarks._turns import ratios, spread

Way = Callable[[], Iterator[int]]
"""Starts a loader; every item is the number of rows of one batch, without end or for an epoch at least."""


@dataclass
class Measured:
    """What came out of a comparison."""

    rounds: dict[str, dict[str, list[float]]]
    """Way → {"rate": rows a second, "cpu": microseconds of all its processes a row}, one value a round."""
    left_out: dict[str, str]
    """Way that could not run here → why."""


def measure(ways: dict[str, Way], *, seconds: float, rounds: int) -> Measured:
    """Every way in every round, each round in another order.

    A peer that is not installed or does not run here is left out of all rounds, with the reason.
    """
    order, found, left_out = random.Random(0), {}, {}
    for _ in range(rounds):
        for name in order.sample(list(ways), len(ways)):
            if name in left_out:
                continue
            try:
                rate, cpu = _once(ways[name], seconds)
            except Exception as error:
                if "forgepress" in name:
                    raise
                left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                print(f"{name}: left out, {left_out[name]}", flush=True)
                continue
            print(f"{name:<50} {rate:14,.0f} rows/s {cpu:10.2f} µs/row", flush=True)
            found.setdefault(name, {"rate": [], "cpu": []})
            found[name]["rate"].append(rate)
            found[name]["cpu"].append(cpu)
    whole = {name: values for name, values in found.items() if name not in left_out}
    return Measured(whole, left_out)


def compared(measured: Measured, ours: str, limit: str | None) -> list[dict[str, Any]]:
    """Rows for `_result.write`: every rate and processor time, ours against each other way, and against the limit."""
    rows, found = [], measured.rounds
    for name, values in found.items():
        rates, times = values["rate"], values["cpu"]
        many = len(rates) > 1
        rows.append(
            {
                "case": name,
                "value": statistics.median(rates),
                "unit": "rows/s",
                **(spread(rates) if many else {}),
            }
        )
        rows.append({"case": f"{name}: processor time", "value": statistics.median(times), "unit": "µs/row"})
    for name, values in found.items():
        if name != ours and ours in found:
            one, other = found[ours]["rate"], values["rate"]
            word = "share of" if name == limit else "times"
            if len(one) > 1:
                rows.append({"case": f"{ours}, {word} {name}", **ratios(one, other)})
            else:
                rows.append({"case": f"{ours}, {word} {name}", "value": one[0] / other[0], "unit": "×"})
    return rows


def _once(way: Way, seconds: float) -> tuple[float, float]:
    batches = way()
    next(batches)
    cpu, begin, rows = _cpu(), time.perf_counter(), 0
    try:
        while (passed := time.perf_counter() - begin) < seconds:
            for _ in range(4):
                rows += next(batches)
        used = _cpu() - cpu
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return rows / passed, used / rows * 1e6


def _cpu() -> float:
    """Seconds of this process and of all that it has started and that still run."""
    own = psutil.Process(os.getpid())
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def lazy(make: Callable[[], Way]) -> Way:
    """A way whose files are written, and whose library is looked for, when it is first asked for (before the clock)."""

    def way() -> Iterator[int]:
        return make()()

    return way


def endless(make: Callable[[], Any], count: Callable[[Any], int]) -> Way:
    """A way of something that is iterated once an epoch."""

    def way() -> Iterator[int]:
        loader = make()
        while True:
            for batch in loader:
                yield count(batch)

    return way


def ours(make: Callable[[], Any]) -> Way:
    """A way of a Loader."""

    def way() -> Iterator[int]:
        with make() as loader:
            for batch in loader.stream():
                yield batch.global_rows

    return way
