"""A function of rows that gives the same every time: done before the cache, so that it is done once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from .fingerprint import combined
from .making import BatchFunction, check_columns
from .source import ColumnInfo


class PreparedSource:
    """`source` with `function` done to the columns of every batch that is gathered. It draws nothing at random.

    The result of a row may not depend on the other rows of its batch.
    """

    holds_lock = True

    def __init__(self, source: Any, function: BatchFunction) -> None:
        self._source, self._function = source, function
        self.concurrent = getattr(source, "concurrent", False)
        probe = self.gather(np.zeros(1, np.int64))
        self.columns: Mapping[str, ColumnInfo] = {name: ColumnInfo.of(rows) for name, rows in probe.items()}

    @property
    def fingerprint(self) -> str:
        """The data's: what is done to them is not other data."""
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, rows: np.ndarray, width: int | None = None) -> dict[str, Tensor]:
        """Column → [len(rows), …]. width: of lists of different lengths."""
        columns = self._function(self._source.gather(rows, **({} if width is None else {"width": width})))
        check_columns(columns, len(rows))
        return columns


def mark_of(function: BatchFunction | None) -> str:
    """Another text where the function does something else: its code, defaults and what it holds."""
    if function is None:
        return ""
    from datasets.fingerprint import Hasher

    return combined(Hasher.hash(function))
