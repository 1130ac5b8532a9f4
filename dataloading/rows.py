"""Rows of a `datasets.Dataset` as a source."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .arrow import TEXT_VOCABULARY
from .columns import Columns, check_shape
from .decoding import holds_lock
from .mapped import FRESH, Make
from .source import ColumnInfo

BYTES = ("<pad>", *(f"<0x{byte:02X}>" for byte in range(TEXT_VOCABULARY - 1)))
"""The vocabulary of texts that are read byte by byte."""


class TableSource:
    """Rows of a `datasets.Dataset`, read a batch at a time from where its Arrow tables lie.

    rows:  row numbers of the dataset that this source consists of.
    names: column of the dataset → name here.
    vocabulary: the tokens that the numbers stand for, where the table holds tokens already.
    length, widen, ragged: see `Columns`.
    """

    concurrent = reuses = True

    def __init__(
        self,
        table: Any,
        rows: np.ndarray,
        names: dict[str, str],
        *,
        fingerprint: str,
        length: int | None = None,
        widen: bool = True,
        ragged: bool = False,
        vocabulary: tuple[str, ...] | None = None,
    ) -> None:
        chosen = _rows_of(table)
        data = getattr(table.data, "table", table.data)
        is_all = len(rows) == len(table) and np.array_equal(rows, np.arange(len(rows)))
        self._shown = None if is_all else rows  # None: numbers here are those of the dataset
        self._rows = self._shown if chosen is None else chosen[rows]  # None: rows lie as they are numbered
        self._count, self.fingerprint = len(rows), fingerprint
        given: dict[str, Any] = {"length": length, "widen": widen, "ragged": ragged}
        self._columns = Columns(data.select(list(names)), names, **given)
        one = rows[:1]
        first = self._columns.gather(one if chosen is None else chosen[one], shown=one)
        likes = {name: first[name][0] for name in self._columns.pictures}
        self._columns = Columns(data.select(list(names)), names, **given, likes=likes)
        self.columns = {name: ColumnInfo.of(tensor) for name, tensor in first.items()}
        self.has_images = bool(likes)
        self.holds_lock = self.has_images and holds_lock()
        self.classes = _classes(table, names)
        is_text = getattr(_feature(table, names, "inputs"), "dtype", None) in ("string", "large_string")
        self.vocabulary = vocabulary or (BYTES if is_text else None)
        self.ragged = self._columns.ragged
        """The column whose rows have lengths of their own; None where there is none."""
        self.row_length: int | None = None
        """Tokens in a model's row, where rows have lengths of their own and this is known."""

    def __len__(self) -> int:
        return self._count

    @property
    def lengths(self) -> np.ndarray:
        """Values in every row of the column `ragged`, int64 [rows]."""
        if self.ragged is None:
            raise DataError(
                f"the columns {', '.join(self.columns)} have no lists of different lengths; bucketing and packing "
                "need one"
            )
        return self._columns.lengths if self._rows is None else self._columns.lengths[self._rows]

    @property
    def token_type(self) -> torch.dtype:
        """Type of the values of the column `ragged`."""
        return self._columns.token_type

    def gather(self, rows: np.ndarray, make: Make = FRESH, width: int | None = None) -> dict[str, Tensor]:
        """Column → [len(rows), …]. DataError for a row whose shape is not that of row 0."""
        if not len(rows):
            wide = (width or 0,)
            return {
                name: torch.empty(
                    (0, *(wide if name in self._columns.varied else info.shape)), dtype=info.dtype
                )
                for name, info in self.columns.items()
            }
        inside = rows if self._rows is None else self._rows[rows]
        shown = rows if self._shown is None else self._shown[rows]
        found = self._columns.gather(inside, make, width=width, shown=shown)
        for name, tensor in found.items():
            if name not in self._columns.varied:
                check_shape(name, tensor.shape[1:], self.columns[name].shape, shown)
        return found

    def runs(
        self, rows: np.ndarray, first: np.ndarray, lengths: np.ndarray, places: np.ndarray, out: Tensor
    ) -> None:
        """Values of the column `ragged`: see `mapped.Ragged.runs`."""
        self._columns.runs(rows if self._rows is None else self._rows[rows], first, lengths, places, out)


def _rows_of(table: Any) -> np.ndarray | None:
    """The rows of its data that a selected, shuffled or filtered dataset consists of; None for all as they lie."""
    chosen = getattr(table, "_indices", None)
    return None if chosen is None else chosen.column(0).to_numpy().astype(np.int64)


def _classes(table: Any, names: dict[str, str]) -> int | None:
    """Of integer targets: as the file says, else the largest in any split + 1."""
    import pyarrow.compute as compute

    old = next((old for old, new in names.items() if new == "targets"), None)
    if old is None or not str(table.data.schema.field(old).type).startswith(("int", "uint")):
        return None
    said = getattr(table.features[old], "num_classes", None)
    return said or compute.call_function("max", [table.data.column(old)]).as_py() + 1


def _feature(table: Any, names: dict[str, str], name: str) -> Any:
    return next((table.features[old] for old, new in names.items() if new == name), None)
