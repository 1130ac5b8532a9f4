"""Which rows make which batch, for one data rank: pure arithmetic, no data is touched."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .order import epoch_order
from .partition import Part, full_sizes, part_of

Tail = Literal["keep", "drop", "pad"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides batches, as numbers."""

    rows: int  # in the source
    batch: int  # real rows of a full global batch
    rank: int
    ranks: int
    seed: int
    shuffle: bool
    microbatches: int
    tail: Tail
    pad_rows: bool

    @property
    def end(self) -> int:
        """Rows of an epoch that are used."""
        return self.rows - self.rows % self.batch if self.tail == "drop" else self.rows

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        return -(-self.end // self.batch)

    def next(self, epoch: int, consumed: int) -> tuple[int, int]:
        """Normalise a position: where no batch is left in the epoch, the next epoch's begin."""
        left = self.rows - consumed
        is_over = left < self.batch if self.tail == "drop" else left <= 0
        return (epoch + 1, 0) if is_over else (epoch, consumed)

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

    def groups(self, epoch: int, consumed: int, size: int) -> Iterator["Group"]:
        """All batches from a position on, without end, up to `size` batches of one epoch at a time."""
        while True:
            epoch, consumed = self.next(epoch, consumed)
            order = epoch_order(self.rows, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
            while self.next(epoch, consumed) == (epoch, consumed):
                group = Group(epoch, consumed // self.batch, [], [], [])
                while len(group.parts) < size and self.next(epoch, consumed) == (epoch, consumed):
                    real = min(self.batch, self.rows - consumed)
                    part = self.part(real)
                    group.real.append(real)
                    group.parts.append(part)
                    group.rows.append(order[consumed + part.positions])
                    consumed += real
                yield group


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive batches of one epoch that are worked out or read together."""

    epoch: int
    index: int  # of the first batch
    real: list[int]  # real rows of each global batch
    parts: list[Part]
    rows: list[np.ndarray]  # row numbers of this rank, for each batch

    def pieces(self, size: int) -> Iterator["Group"]:
        """The same batches as groups of up to `size`."""
        for at in range(0, len(self.real), size):
            cut = slice(at, at + size)
            yield Group(self.epoch, self.index + at, self.real[cut], self.parts[cut], self.rows[cut])
