"""Which rows make which batch, for one data rank: pure arithmetic, no data is touched."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
            group, spans = Group(at.epoch, [at], [], [], [], [], []), []
            while len(group.real) < size and at.epoch == group.epoch:
                taken = self._spans(at, self.batch)
                real = sum(end - begin for _, begin, end in taken)
                at = self.next(self._after(at, taken))
                if real < self.batch and self.tail == "wrap":
                    taken += self._wrapped(group.epoch, self.batch - real)
                    real = self.batch
                group.positions.append(at)
                group.real.append(real)
                group.parts.append(self.part(real))
                spans.append(taken)
            self._find(group, spans)
            yield group

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

    def _find(self, group: "Group", spans: list[list[tuple[int, int, int]]]) -> None:
        """Fill in the row numbers: all places of the group in one call of the order for each window."""
        parts = [None if self.lengths is not None else part.positions for part in group.parts]
        places = [_places(taken, part) for taken, part in zip(spans, parts, strict=True)]
        windows = np.concatenate([window for window, _ in places])
        offsets = np.concatenate([offset for _, offset in places])
        items = np.empty(len(offsets), np.int64)
        for window in (0,) if self.order.windows(group.epoch) == 1 else np.unique(windows).tolist():
            here = windows == window
            items[here] = self.order.items(group.epoch, window, offsets[here])
        passes = getattr(self.order, "passes", None)
        drawn = passes(group.epoch, offsets) if passes else None
        begin = 0
        for (offset, _), part in zip(places, group.parts, strict=True):
            batch = items[begin : begin + len(offset)]
            if self.lengths is not None:
                group.widths.append(int(self.lengths[batch].max(initial=0)))
                batch = batch[part.positions]
            group.rows.append(batch)
            if drawn is not None:
                of_batch = drawn[begin : begin + len(offset)]
                group.passes.append(of_batch[part.positions] if self.lengths is not None else of_batch)
            begin += len(offset)


def _places(taken: list[tuple[int, int, int]], positions: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Window and place in it of chosen `positions` (None: all) of a batch that consists of spans."""
    if len(taken) == 1 and positions is not None:
        window, begin, _ = taken[0]
        return np.full(len(positions), window), begin + positions
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
            yield replace(
                self,
                positions=self.positions[at : at + size + 1],
                real=self.real[cut],
                parts=self.parts[cut],
                rows=self.rows[cut],
                widths=self.widths[cut],
                passes=self.passes[cut],
            )
