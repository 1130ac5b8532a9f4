"""Rows that are costly to make are made once: decoded pictures stay in memory while they fit."""

from math import prod

import numpy as np
import torch
from torch import Tensor

from .source import ColumnInfo, Source


class CachedSource:
    """`source` with every row kept as it was first given. Cached or not, a row has the same bits.

    The whole table is reserved at once and filled as rows are asked for (the system gives memory at first writing).
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.columns = source.columns
        self.classes = getattr(source, "classes", None)
        self.vocabulary = getattr(source, "vocabulary", None)
        self._kept = {
            name: torch.empty((len(source), *info.shape), dtype=info.dtype)
            for name, info in source.columns.items()
        }
        self._has = np.zeros(len(source), dtype=bool)

    @property
    def fingerprint(self) -> str:
        """The source's."""
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Column → [len(rows), …]; only rows that were never asked for are read from the source."""
        missing = np.unique(rows[~self._has[rows]])
        if len(missing):
            at = torch.from_numpy(missing)
            for name, made in self._source.gather(missing).items():
                self._kept[name].index_copy_(0, at, made)
            self._has[missing] = True
        index = torch.from_numpy(rows)
        return {name: kept.index_select(0, index) for name, kept in self._kept.items()}


def bytes_of(columns: dict[str, ColumnInfo], rows: int) -> int:
    """Memory that `rows` rows take."""
    return sum(prod(info.shape) * info.dtype.itemsize for info in columns.values()) * rows
