"""Columns of Arrow tables as tensors, whole batches at a time."""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

TEXT_VOCABULARY = 257  # padding and 256 bytes


def to_tensor(name: str, column: Any, *, length: int | None = None) -> Tensor:
    """A column (pyarrow array, chunked or not) of numbers, lists of numbers or text as a tensor [rows, …]; copied.

    Integers become int64 (uint8 stays), floating point float32 (float16 stays), true/false bool. Text becomes int64
    [rows, length]: UTF-8 byte + 1, cut at `length`, filled up with 0.
    raises: DataError for missing values, lists of different lengths, and types that are no numbers.
    """
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    shape = [len(array)]
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            missing = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(
                f"column {name!r} has no value in row {missing // prod(shape[1:])} of a batch; want one in every row: "
                "fill or drop such rows"
            )
        if not _is_list(array.type):
            break
        shape.append(_width(name, array))
        array = array.flatten()
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return _text(name, array, length).reshape(*shape, -1)
    return _numbers(name, array).reshape(shape)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _width(name: str, array: Any) -> int:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(array.type):
        return array.type.list_size
    widths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False))
    if len(widths) > 1:
        raise DataError(
            f"column {name!r} has lists of {widths[0]} to {widths[-1]} values; want equally many in every row: "
            "pad or cut them first, for example with datasets.map"
        )
    return int(widths[0]) if len(widths) else 0


def _numbers(name: str, array: Any) -> Tensor:
    import pyarrow as pa

    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(
            f"column {name!r} is of type {kind}; want numbers, lists of numbers, text or images: "
            "choose others with inputs: and targets:"
        )
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind in "iu" and values.dtype != np.uint8:
        wanted = np.dtype(np.int64)
    else:
        wanted = np.dtype(np.float32) if values.dtype == np.float64 else values.dtype
    return torch.from_numpy(values.astype(wanted))  # a copy: the mapped file is never handed out


def _text(name: str, array: Any, length: int | None) -> Tensor:
    if length is None:
        raise DataError(
            f"column {name!r} is text; say length: N to get its first N bytes as tokens, choose other columns with "
            "inputs: and targets:, or make tokens first with datasets.map"
        )
    encoded = np.zeros((len(array), length), dtype=np.int64)
    for row, text in enumerate(array.to_pylist()):
        content = np.frombuffer(text.encode(), np.uint8)[:length]
        encoded[row, : len(content)] = content
        encoded[row, : len(content)] += 1
    return torch.from_numpy(encoded)
