"""Work that is done once for a node: one process does it and says how far it is, the others wait for what it leaves."""

import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SAID_EVERY = 5.0  # seconds between two lines about how far it is


class Progress:
    """Says on standard error every few seconds how much of `total` is done, and how long the rest will take."""

    def __init__(self, total: int | None, what: str) -> None:
        """total: None where it is not known.   what: is counted, such as "rows"."""
        self._total, self._what = total, what
        self._begun = self._said = time.monotonic()
        self._done = 0

    def add(self, count: int) -> None:
        """So much more is done."""
        self._done += count
        now = time.monotonic()
        if now - self._said < _SAID_EVERY:
            return
        self._said = now
        if self._total is None:
            print(f"preparing data: {self._done:,} {self._what} so far", file=sys.stderr, flush=True)
            return
        share = min(self._done / max(self._total, 1), 1.0)
        left = (now - self._begun) / max(share, 1e-9) * (1 - share)
        line = f"preparing data: {share:.0%} of {self._total:,} {self._what}, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process of this node at a time holds the file `lock` (made where it is missing); it goes with the process."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
