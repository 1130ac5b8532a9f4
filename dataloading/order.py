"""The order of rows in an epoch: a function of (rows, seed, epoch, position) and nothing else."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError
from .bijection import Permutation
from .recent import Recent

STREAM_BLOCKS, STREAM_INSIDE, STREAM_RUNS = 1, 2, 3  # further words of keys: no two draws share one


class Order(Protocol):
    """Which row stands at each position of each epoch. An epoch has one or more windows, worked out one by one."""

    def describe(self) -> Mapping[str, Any]:
        """Small JSON values: two orders that differ say different things."""
        ...

    def windows(self, epoch: int) -> int:
        """Windows of this epoch."""
        ...

    def count(self, epoch: int, window: int) -> int:
        """Positions of one window."""
        ...

    def items(self, epoch: int, window: int, positions: np.ndarray) -> np.ndarray:
        """Row numbers (int64) at positions (int64) of a window."""
        ...


class RowOrder(Order):
    """All rows of one source, one window an epoch: as they lie, or shuffled."""

    def __init__(self, rows: int, *, seed: int, shuffle: bool) -> None:
        self._rows, self._seed, self._shuffle = rows, seed, shuffle

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "rows", "shuffle": self._shuffle}

    def windows(self, epoch: int) -> int:
        return 1

    def count(self, epoch: int, window: int) -> int:
        return self._rows

    def items(self, epoch: int, window: int, positions: np.ndarray) -> np.ndarray:
        if not self._shuffle:
            return positions
        return Permutation(self._rows, (self._seed, epoch))(positions)


class BlockOrder(Order):
    """Blocks of rows in shuffled order, then rows shuffled inside every `window` of blocks.

    For data where a row costs the reading of its whole block (row groups of Parquet, cold disks): at any time `window`
    blocks are read from.
    edges: first row of every block and the number of rows, int64 [blocks + 1].
    """

    def __init__(self, edges: np.ndarray, *, seed: int, window: int) -> None:
        if type(window) is not int or window < 1:
            raise ConfigError(f"data: block shuffle over window={window!r} blocks; want 1 or more")
        self._edges, self._seed, self._window = edges, seed, window
        self._laid_out = Recent(self._lay_out, 2)

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "blocks", "blocks": len(self._edges) - 1, "window": self._window}

    def windows(self, epoch: int) -> int:
        return 1

    def count(self, epoch: int, window: int) -> int:
        return int(self._edges[-1])

    def items(self, epoch: int, window: int, positions: np.ndarray) -> np.ndarray:
        blocks, ends = self._laid_out(epoch)
        groups = ends[self._window - 1 :: self._window]  # positions at which groups of blocks end
        if not len(groups) or groups[-1] != ends[-1]:
            groups = np.append(groups, ends[-1])
        group = np.searchsorted(groups, positions, side="right")
        found = np.empty(len(positions), np.int64)
        for number in np.unique(group):
            here = group == number
            begin = int(groups[number - 1]) if number else 0
            size = int(groups[number]) - begin
            key = (self._seed, epoch, STREAM_INSIDE, int(number))
            places = begin + Permutation(size, key)(positions[here] - begin)
            block = np.searchsorted(ends, places, side="right")
            first = np.where(block, ends[block - 1], 0)
            found[here] = self._edges[blocks[block]] + places - first
        return found

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks in the order of this epoch, and the position at which each ends."""
        count = len(self._edges) - 1
        blocks = Permutation(count, (self._seed, epoch, STREAM_BLOCKS))(np.arange(count))
        return blocks, np.cumsum(self._edges[blocks + 1] - self._edges[blocks])


def epoch_order(rows: int, *, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """Row numbers [rows] (int64) in the order of this epoch; a permutation, or 0, 1, 2, … without `shuffle`."""
    return RowOrder(rows, seed=seed, shuffle=shuffle).items(epoch, 0, np.arange(rows, dtype=np.int64))
