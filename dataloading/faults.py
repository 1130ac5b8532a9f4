"""Rows that cannot be read: another row, always the same one, stands in for each."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DataError
from .meter import Meter
from .source import ColumnInfo

_TRIED = 64  # rows after a damaged one that are tried in its place


class Substituting:
    """`source` where a row that cannot be read is replaced by the next one that can (after the last: the first).

    The stand-in is a function of the data alone, so that counts, order and batches stay equal on all ranks.
    most: damaged rows that this rank puts up with; one more raises the row's own error.
    """

    def __init__(self, source: Any, most: int, meter: Meter) -> None:
        self._source, self._most, self._meter = source, most, meter
        self.columns: Mapping[str, ColumnInfo] = source.columns
        self.concurrent = getattr(source, "concurrent", False)
        self.reuses = getattr(source, "reuses", False)
        self.stand_ins: dict[int, int] = {}
        """Damaged row → the row that stands in for it, as far as they were met."""
        self._finding = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """The source's."""
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_finding"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._finding = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def gather(self, rows: np.ndarray, **given: Any) -> dict[str, Tensor]:
        """Column → [len(rows), …]. raises: the source's error beyond `most` damaged rows."""
        asked = self._replaced(rows)
        try:
            return self._source.gather(asked, **given)
        except (DataError, OSError, ValueError) as error:
            with self._finding:
                met = any(row in self.stand_ins for row in asked.tolist())  # by another thread, meanwhile
                found = [row for row in np.unique(asked).tolist() if not self._is_whole(row)]
                if not found and not met:
                    raise  # the fault lies in no row of its own
                for row in found:
                    self._stand_in(row, error)
        return self._source.gather(self._replaced(rows), **given)

    def _replaced(self, rows: np.ndarray) -> np.ndarray:
        if not self.stand_ins:
            return rows
        return np.array([self.stand_ins.get(row, row) for row in rows.tolist()], np.int64)

    def _is_whole(self, row: int) -> bool:
        if row in self.stand_ins:
            return True
        try:
            self._source.gather(np.array([row]))
        except (DataError, OSError, ValueError):
            return False
        return True

    def _stand_in(self, row: int, error: Exception) -> None:
        if len(self.stand_ins) >= self._most:
            raise DataError(
                f"{error}; {len(self.stand_ins)} damaged rows were replaced before, and no more are allowed: mend the "
                "data, or raise most_errors"
            ) from error
        for step in range(1, _TRIED + 1):
            other = (row + step) % len(self)
            if other not in self.stand_ins and self._is_whole(other):
                self.stand_ins[row] = other
                self._meter.add(substituted=1)
                return
        raise DataError(f"{error}; nor can the {_TRIED} rows after it be read") from error
