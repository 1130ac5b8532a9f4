"""Which rows make which batch, for one data rank: pure arithmetic, no data is touched."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from .order import Order
from .partition import Part, full_sizes, part_of

Tail = Literal["keep", "drop", "pad", "wrap"]


class Position(NamedTuple):
    """A place in the endless stream of batches."""

    epoch: int
    window: int  # of the order
    consumed: int  # rows of the window
    index: int  # batches of the epoch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides batches, as numbers."""

    order: Order
    batch: int  # real rows of a full global batch
    rank: int
    ranks: int
    microbatches: int
    tail: Tail
    pad_rows: bool
    lengths: np.ndarray | None = None  # of every row, where a batch is as wide as its longest row

    def rows(self, epoch: int) -> int:
        """Rows of an epoch."""
        return sum(self.order.count(epoch, window) for window in range(self.order.windows(epoch)))

    def batches(self, epoch: int) -> int:
        """Batches of a whole epoch."""
        rows = self.rows(epoch)
        return rows // self.batch if self.tail == "drop" else -(-rows // self.batch)

    def next(self, at: Position) -> Position:
        """Normalise a position: where a window or an epoch has no batch left, the next one's begin."""
        windows = self.order.windows(at.epoch)
        while at.window < windows and at.consumed >= self.order.count(at.epoch, at.window):
            at = Position(
                at.epoch, at.window + 1, at.consumed - self.order.count(at.epoch, at.window), at.index
            )
        wanted = self.batch if self.tail == "drop" else 1
        if sum(end - begin for _, begin, end in self._spans(at, wanted)) < wanted:
            return Position(at.epoch + 1, 0, 0, 0)
        return at

    def part(self, real: int) -> Part:
        """This rank's part of a global batch of `real` rows."""
        sizes = ()
        if self.pad_rows or (self.tail == "pad" and real < self.batch):
            sizes = full_sizes(
                self.batch,
                microbatches=self.microbatches,
                ranks=self.ranks,
                rank=self.rank,
                equal=self.pad_rows,
            )
        return part_of(real, microbatches=self.microbatches, ranks=self.ranks, rank=self.rank, sizes=sizes)

    def groups(self, at: Position, size: int) -> Iterator["Group"]:
        """All batches from a position on, without end, up to `size` batches of one epoch at a time."""
        at = self.next(at)
        while True:
            group = Group(at.epoch, [at], [], [], [], [], [])
            while (room := size - len(group.real)) > 0 and at.epoch == group.epoch:
                left = self.order.count(at.epoch, at.window) - at.consumed
                if left >= self.batch:
                    at = self._add_full(group, at, min(room, left // self.batch))
                else:
                    at = self._add_one(group, at)
            yield group

    def _add_full(self, group: "Group", at: Position, count: int) -> Position:
        """Add `count` full batches that lie in one window, all worked out at once; returns the position after them."""
        part = self.part(self.batch)
        first = at.consumed + np.arange(count)[:, None] * self.batch
        places = first + (part.positions if self.lengths is None else np.arange(self.batch))
        items = self.order.items(at.epoch, at.window, places.reshape(-1)).reshape(places.shape)
        after = [
            at._replace(consumed=at.consumed + n * self.batch, index=at.index + n) for n in range(1, count)
        ]
        end = at._replace(consumed=at.consumed + count * self.batch, index=at.index + count)
        self._add(group, items, places, [part] * count)
        group.positions.extend([*after, self.next(end)])
        group.real.extend([self.batch] * count)
        return group.positions[-1]

    def _add_one(self, group: "Group", at: Position) -> Position:
        """Add a batch that reaches over windows, or an epoch's last one; returns the position after it."""
        taken = self._spans(at, self.batch)
        real = sum(end - begin for _, begin, end in taken)
        group.positions.append(self.next(self._after(at, taken)))
        if real < self.batch and self.tail == "wrap":
            taken += self._wrapped(group.epoch, self.batch - real)
            real = self.batch
        part = self.part(real)
        windows, places = _places(taken, None if self.lengths is not None else part.positions)
        items = np.empty(len(places), np.int64)
        for window in np.unique(windows).tolist():
            here = windows == window
            items[here] = self.order.items(group.epoch, window, places[here])
        self._add(group, items[None], places[None], [part])
        group.real.append(real)
        return group.positions[-1]

    def _add(self, group: "Group", items: np.ndarray, places: np.ndarray, parts: list[Part]) -> None:
        """Row numbers of batches, int64 [batches, rows]: of this rank, or of all where the longest row counts."""
        passes = getattr(self.order, "passes", None)
        drawn = passes(group.epoch, places.reshape(-1)).reshape(places.shape) if passes else None
        if self.lengths is not None:
            group.widths.extend(self.lengths[items].max(1, initial=0).tolist())
            items = items[:, parts[0].positions]
            drawn = None if drawn is None else drawn[:, parts[0].positions]
        group.rows.extend(items)
        group.passes.extend(() if drawn is None else drawn)
        group.parts.extend(parts)

    def _spans(self, at: Position, wanted: int) -> list[tuple[int, int, int]]:
        """(window, begin, end) of up to `wanted` rows of the epoch."""
        found: list[tuple[int, int, int]] = []
        window, begin = at.window, at.consumed
        while wanted > 0 and window < self.order.windows(at.epoch):
            end = min(begin + wanted, self.order.count(at.epoch, window))
            if end > begin:
                found.append((window, begin, end))
                wanted -= end - begin
            window, begin = window + 1, 0
        return found

    def _after(self, at: Position, taken: list[tuple[int, int, int]]) -> Position:
        window, _, end = taken[-1]
        return Position(at.epoch, window, end, at.index + 1)

    def _wrapped(self, epoch: int, wanted: int) -> list[tuple[int, int, int]]:
        """The epoch's first rows, as often as it takes."""
        found: list[tuple[int, int, int]] = []
        while wanted > 0:
            more = self._spans(Position(epoch, 0, 0, 0), wanted)
            wanted -= sum(end - begin for _, begin, end in more)
            found += more
        return found


def _places(taken: list[tuple[int, int, int]], positions: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Window and place in it of chosen `positions` (None: all) of a batch that consists of spans."""
    windows = np.concatenate([np.full(end - begin, window) for window, begin, end in taken])
    offsets = np.concatenate([np.arange(begin, end, dtype=np.int64) for _, begin, end in taken])
    return (windows, offsets) if positions is None else (windows[positions], offsets[positions])


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive batches of one epoch that are worked out or read together."""

    epoch: int
    positions: list[Position]  # of the first batch, and after each
    real: list[int]  # real rows of each global batch
    parts: list[Part]
    rows: list[np.ndarray]  # row numbers of this rank, for each batch
    widths: list[int]  # longest row of each global batch, where rows have lengths
    passes: list[np.ndarray]  # over its own source, of each row, where sources are mixed

    def pieces(self, size: int) -> Iterator["Group"]:
        """The same batches as groups of up to `size`."""
        for at in range(0, len(self.real), size):
            cut = slice(at, at + size)
            positions = self.positions[at : at + size + 1]
            lists = (self.real[cut], self.parts[cut], self.rows[cut], self.widths[cut], self.passes[cut])
            yield Group(self.epoch, positions, *lists)
