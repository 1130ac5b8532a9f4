"""Several sources in given shares: which source stands at each position, and how far it has come there."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, reduce
from math import isfinite, lcm
from typing import Any

import numpy as np

from ..errors import ConfigError
from .order import Order

_PERIOD = 1 << 14  # positions after which shares repeat, at most


class MixedOrder(Order):
    """Rows of several sources, every source in an order of its own, each in its share at every moment.

    Source s has given `count` rows after n positions with |count - share · n| < 1, for every n. A source that is
    smaller than its share begins its next pass while others go on; an epoch is as long as all sources together.

    orders:  of each source, with one window; its rows are numbered from `starts[s]` on.
    weights: of each source, any positive numbers. Shares are rounded to a common denominator of at most 16,384.
    begun:   where these weights began and how many rows each source had given there: see `changed`.
    source:  Tijdeman 1980, The chairman assignment problem.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        starts: Sequence[int],
        weights: Sequence[float],
        *,
        begun: tuple[int, tuple[int, ...]] | None = None,
    ) -> None:
        self.shares = shares_of(weights, len(orders))
        self._orders, self._starts = list(orders), list(starts)
        self._since, counts = begun or (0, (0,) * len(orders))
        self._counts = np.array(counts, np.int64)
        self._rows = [order.count(0, 0) for order in orders]
        self._size = sum(self._rows)
        self._sources, self._ranks, self._parts = schedule(self.shares)

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "mixed", "sources": [dict(order.describe()) for order in self._orders]}

    def windows(self, epoch: int) -> int:
        return 1

    def count(self, epoch: int, window: int) -> int:
        return self._size

    def items(self, epoch: int, window: int, positions: np.ndarray) -> np.ndarray:
        source, number = self.places(epoch * self._size + positions)
        found = np.empty(len(positions), np.int64)
        for which, (order, start, rows) in enumerate(
            zip(self._orders, self._starts, self._rows, strict=True)
        ):
            here = np.flatnonzero(source == which)
            passes, places = np.divmod(number[here], rows)
            for epoch_of_source in np.unique(passes):
                at = passes == epoch_of_source
                found[here[at]] = start + order.items(int(epoch_of_source), 0, places[at])
        return found

    def passes(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The pass over its own source that the row at each position belongs to, int64."""
        source, number = self.places(epoch * self._size + positions)
        return number // np.array(self._rows)[source]

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of positions of the endless stream: the source, and how many of its rows came before (int64 each)."""
        period, at = np.divmod(positions - self._since, len(self._sources))
        source = self._sources[at]
        return source, self._counts[source] + period * self._parts[source] + self._ranks[at]

    def given(self, position: int) -> list[int]:
        """Rows that each source has given before `position` of the endless stream."""
        period, rest = divmod(position - self._since, len(self._sources))
        begun = np.bincount(self._sources[:rest], minlength=len(self._rows))
        return (self._counts + period * self._parts + begun).tolist()

    def state(self, epoch: int, consumed: int) -> dict[str, Any]:
        """What `changed` needs of this order at a position, as JSON values."""
        return {
            "weights": [f"{share.numerator}/{share.denominator}" for share in self.shares],
            "since": self._since,
            "given": self._counts.tolist(),
        }

    def resumed(self, state: Mapping[str, Any], epoch: int, consumed: int) -> "MixedOrder":
        """The order that goes on from a state at a position; where weights were others, these count from there."""
        old = [Fraction(text) for text in state["weights"]]
        begun = (int(state["since"]), tuple(map(int, state["given"])))
        same = MixedOrder(self._orders, self._starts, [float(share) for share in old], begun=begun)
        if old == self.shares:
            return same
        position = epoch * self._size + consumed
        weights = [float(share) for share in self.shares]
        return MixedOrder(self._orders, self._starts, weights, begun=(position, tuple(same.given(position))))


def shares_of(weights: Sequence[float], sources: int) -> list[Fraction]:
    """Weights as fractions that add up to 1, with a small common denominator. raises: ConfigError."""
    good = all(isinstance(w, int | float) and isfinite(w) and w > 0 for w in weights)
    if len(weights) != sources or not good:
        raise ConfigError(
            f"data: weights={list(weights)!r} for {sources} sources; want one positive number for each"
        )
    exact = [Fraction(weight).limit_denominator(1000) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact] if total else []
    if shares and reduce(lcm, (share.denominator for share in shares)) <= _PERIOD and all(shares):
        return shares
    whole = [Fraction(weight) / sum(map(Fraction, weights)) * _PERIOD for weight in weights]
    parts = [max(int(part), 1) for part in whole]
    order = sorted(range(sources), key=lambda s: parts[s] - whole[s])
    for number in range(_PERIOD - sum(parts)):
        parts[order[number % sources]] += 1
    while sum(parts) > _PERIOD:
        parts[parts.index(max(parts))] -= 1
    return [Fraction(part, _PERIOD) for part in parts]


def schedule(shares: Sequence[Fraction]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One period: source at each position, how many of it came before in the period, and how many it has in all."""
    return _schedule(tuple(shares))


@lru_cache(maxsize=8)
def _schedule(shares: tuple[Fraction, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    period = reduce(lcm, (share.denominator for share in shares))
    parts = [int(share * period) for share in shares]
    slack = max(2 * len(shares) - 2, 1)  # 1 / slack of a row
    given = [0] * len(shares)
    sources, ranks = np.empty(period, np.int64), np.empty(period, np.int64)
    for at in range(period):
        # Of those that may be given now, the one that must be given first; in whole numbers, so that none is rounded.
        best, due = -1, 0
        for which, part in enumerate(parts):
            if (part * (at + 1) - given[which] * period) * slack >= period:
                needed = (given[which] + 1) * slack - 1  # due at needed · period / (slack · part)
                if best < 0 or needed * parts[best] < due * part:
                    best, due = which, needed
        sources[at], ranks[at] = best, given[best]
        given[best] += 1
    return sources, ranks, np.array(parts, np.int64)
