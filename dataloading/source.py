"""Rows by number: what a loader needs of data, and the simplest source, arrays in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .fingerprint import of_arrays
from .mapped import FRESH, Make, take_rows


@dataclass(frozen=True)
class ColumnInfo:
    """Type and shape of one row of a column."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, rows: Tensor) -> "ColumnInfo":
        """The info of a tensor [rows, …]."""
        return cls(rows.dtype, tuple(rows.shape[1:]))


@runtime_checkable
class Source(Protocol):
    """Rows by number, whole batches at a time. Anything with these four can be loaded.

    A source may also say: `resident = True`, its gather only copies memory, so that a thread of its own would cost more
    than it hides; `concurrent = True`, several threads may call gather at once; `reuses = True`, gather takes a second
    argument `make(shape, dtype)` that gives the memory of a batch; `holds_lock = True`, gather keeps Python's lock;
    `blocks`, first rows of what is read at once and the number of rows; `ragged`, a column whose rows have `lengths`.
    """

    @property
    def fingerprint(self) -> str:
        """Changes when the data change; the same in every process and on every machine."""
        ...

    @property
    def columns(self) -> Mapping[str, ColumnInfo]:
        """Column → type and shape of one row."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def gather(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Column → [len(rows), …] for row numbers `rows` (int64 [n], any order); fresh memory."""
        ...


class ArraySource:
    """Arrays of equal length in memory.

    arrays:      column → numpy array, tensor or nested list [rows, …]. Arrays and tensors are kept, not copied.
    fingerprint: of the data; made from names, types, shapes and all bytes if not given (1 GB takes about a second).
    vocabulary:  the tokens that integers in the columns stand for, if that is what they are.
    classes:     number of classes that targets count, if it is known (this part may not have the last one).
    raises:      DataError for no column, no row, different lengths, or values that are no numbers.
    """

    resident = True
    concurrent = reuses = True

    def __init__(
        self,
        arrays: Mapping[str, Any],
        *,
        fingerprint: str | None = None,
        vocabulary: tuple[str, ...] | None = None,
        classes: int | None = None,
    ) -> None:
        self.tensors = {name: _tensor(name, array) for name, array in arrays.items()}
        lengths = {name: len(tensor) for name, tensor in self.tensors.items()}
        if len(set(lengths.values())) != 1 or not all(lengths.values()):
            raise DataError(
                f"arrays have rows {lengths}; want at least one column, at least one row, equal lengths"
            )
        self._rows = next(iter(lengths.values()))
        self.columns = {name: ColumnInfo.of(tensor) for name, tensor in self.tensors.items()}
        self.vocabulary, self.classes = vocabulary, classes
        self.fingerprint = fingerprint or of_arrays(self.tensors)

    def __len__(self) -> int:
        return self._rows

    def gather(self, rows: np.ndarray, make: Make | None = None) -> dict[str, Tensor]:
        """Column → [len(rows), …], copied. IndexError for a row that is not there."""
        make = make or FRESH
        return {
            name: take_rows(tensor, rows, make((len(rows), *tensor.shape[1:]), tensor.dtype))
            for name, tensor in self.tensors.items()
        }


def _tensor(name: str, array: Any) -> Tensor:
    try:
        if isinstance(array, np.ndarray):
            # torch can neither hold read-only memory nor negative strides nor foreign byte order.
            array = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"])
        tensor = torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"column {name!r}: {error}; want an array of numbers, every row of one shape"
        ) from None
    if tensor.dim() == 0:
        raise DataError(f"column {name!r} is one number; want an array [rows, …]")
    return tensor
