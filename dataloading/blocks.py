"""Rows by number of data that can only be read a block at a time: row groups of files, shards of streams."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .columns import Columns, check_shape
from .mapped import FRESH, Make
from .recent import Recent
from .source import ColumnInfo


class BlockSource:
    """Blocks of rows end to end, each read as an Arrow table when one of its rows is asked for.

    Made for `shuffle=N`, which shuffles blocks, and rows inside every N of them: then a block is read about once an
    epoch. A subclass gives `_table` and calls `_open`.
    """

    concurrent = reuses = True
    fingerprint: str

    def _table(self, number: int) -> Any:
        """Block `number` as a pyarrow Table."""
        raise NotImplementedError

    def _open(
        self, sizes: np.ndarray, names: Mapping[str, str], *, kept: int, length: int | None, widen: bool
    ) -> None:
        """sizes: rows of each block, not all 0.   names: column → name here.   kept: read blocks kept at a time."""
        self.blocks = np.cumsum([0, *sizes])
        """First row of each block, and the number of rows."""
        self._names, self._form = dict(names), {"length": length, "widen": widen}
        self._likes: dict[str, Tensor] = {}
        first = self._columns(int(np.flatnonzero(sizes)[0]))
        row = first.gather(np.zeros(1, np.int64))
        self._likes = {name: row[name][0] for name in first.pictures}
        self.columns = {name: ColumnInfo.of(tensor) for name, tensor in row.items()}
        self._read = Recent(self._columns, kept)

    def __len__(self) -> int:
        return int(self.blocks[-1])

    def gather(self, rows: np.ndarray, make: Make = FRESH) -> dict[str, Tensor]:
        """Column → [len(rows), …]. DataError for a row whose shape is not that of the first row."""
        block = np.searchsorted(self.blocks, rows, side="right") - 1
        out = {name: make((len(rows), *info.shape), info.dtype) for name, info in self.columns.items()}
        for number in np.unique(block):
            here = np.flatnonzero(block == number)
            inside = rows[here] - self.blocks[number]
            found = self._read(int(number)).gather(inside, shown=rows[here])
            for name, tensor in found.items():
                check_shape(name, tensor.shape[1:], self.columns[name].shape, rows[here])
                out[name].index_copy_(0, torch.from_numpy(here), tensor)
        return out

    def _columns(self, number: int) -> Columns:
        return Columns(
            self._table(number).select(list(self._names)), self._names, **self._form, likes=self._likes
        )
