"""Columns of Arrow tables read where they lie: rows of mapped files are copied straight into a batch's memory."""

import ctypes
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from . import native

Make = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Gives a tensor [shape] of uninitialised memory."""
FRESH: Make = lambda shape, dtype: torch.empty(shape, dtype=dtype)  # noqa: E731

_TABLED = (
    1 << 22
)  # rows up to which the address of each is kept (8 bytes a row); beyond it is looked up by chunk
_DTYPES = {
    "int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
    "halffloat": torch.float16, "float": torch.float32, "double": torch.float64,
}  # fmt: skip


class Fixed:
    """A column whose rows all have one shape, over any number of chunks, wherever they lie in memory.

    A table says where each row begins in the whole stretch of memory that the chunks lie in. Without a compiler one
    overlapping view over it serves all chunks: row r of the view begins at the r-th element, so that
    torch.index_select, which holds no interpreter lock either, copies rows from any chunk.
    cost: 8 bytes of memory a row up to 4 million rows.
    """

    def __init__(
        self, addresses: list[int], counts: list[int], shape: tuple[int, ...], dtype: torch.dtype, keep: Any
    ) -> None:
        """addresses: of each chunk's first value.   counts: rows of each chunk.   keep: what owns the memory."""
        self.shape, self.dtype, self._keep = shape, dtype, keep
        self._width = prod(shape)
        used = [(at, count) for at, count in zip(addresses, counts, strict=True) if count]
        low = min((at for at, _ in used), default=0)
        size = dtype.itemsize
        high = max((at + count * self._width * size for at, count in used), default=0)
        self._memory = _memory(low, high - low, dtype)
        self._bases = np.array([(at - low) // size for at, _ in used], np.int64)
        self._edges = np.cumsum([0, *(count for _, count in used)])
        rows = int(self._edges[-1])
        self._view = None
        self._whole = None
        if len(used) == 1:
            self._whole = self._memory.view(rows, self._width)
        elif used:
            span = self._memory.numel()
            self._view = self._memory.as_strided((span - self._width + 1, self._width), (1, 1))
        self._table = self._find(np.arange(rows)) if len(used) > 1 and rows <= _TABLED else None

    def gather(self, rows: np.ndarray, make: Make) -> Tensor:
        """[len(rows), *shape], copied into what `make` gives."""
        out = make((len(rows), *self.shape), self.dtype)
        if not len(rows) or not self._width:
            return out
        flat = out.view(len(rows), self._width)
        if native.library() is not None:
            size = self.dtype.itemsize
            count = int(self._edges[-1])
            if self._whole is not None:
                native.gather_rows(rows, count, None, size * self._width, self._memory, flat)
            elif self._table is not None:
                native.gather_rows(rows, count, self._table, size, self._memory, flat)
            else:
                native.gather_rows(self._find(rows), self._memory.numel(), None, size, self._memory, flat)
        elif self._whole is not None:
            # numpy's take, which drops the interpreter lock too, is quicker than torch's on plain rows.
            np.take(self._whole.numpy(), rows, axis=0, out=flat.numpy(), mode="clip")
        elif self._view is not None:
            at = self._table[rows] if self._table is not None else self._find(rows)
            torch.index_select(self._view, 0, torch.from_numpy(at), out=flat)
        return out

    def _find(self, rows: np.ndarray) -> np.ndarray:
        """First element of each row."""
        chunk = np.searchsorted(self._edges, rows, side="right") - 1
        return self._bases[chunk] + (rows - self._edges[chunk]) * self._width


class Ragged:
    """A column whose rows are runs of values of any length: lists of numbers, texts, encoded pictures.

    cost: 16 bytes of memory a row.
    """

    def __init__(self, pieces: list[tuple[int, np.ndarray]], dtype: torch.dtype, keep: Any) -> None:
        """pieces: of each chunk, the address of its values and its offsets (int64 [rows + 1])."""
        self.dtype, self._keep = dtype, keep
        used = [(at, offsets) for at, offsets in pieces if len(offsets) > 1]
        size = dtype.itemsize
        low = min((at for at, _ in used), default=0)
        high = max((at + int(offsets[-1]) * size for at, offsets in used), default=0)
        self._memory = _memory(low, high - low, dtype)
        none = np.empty(0, np.int64)
        starts = [(at - low) // size + offsets[:-1] for at, offsets in used]
        self._starts = np.concatenate([none, *starts])
        self.lengths = np.concatenate([none, *(np.diff(offsets) for _, offsets in used)])
        """Of every row, int64."""

    def padded(self, rows: np.ndarray, width: int, fill: int, make: Make) -> Tensor:
        """[len(rows), width]: each row's first values, then `fill`."""
        out = make((len(rows), width), self.dtype)
        if not out.numel():
            return out
        if fill == 0 and native.library() is not None:
            native.gather_padded(rows, self._starts, self.lengths, self._memory, out)
            return out
        lengths = np.minimum(self.lengths[rows], width)
        at = self._starts[rows]
        last = self._memory.numel() - width
        near_end = at > last
        if last < 0 or near_end.all():
            return self._one_by_one(out, at, lengths, fill)
        view = self._memory.as_strided((last + 1, width), (1, 1))
        torch.index_select(view, 0, torch.from_numpy(np.where(near_end, 0, at)), out=out)
        for row in np.flatnonzero(near_end).tolist():  # what follows them is not ours to read
            out[row, : lengths[row]] = self._memory[at[row] : at[row] + lengths[row]]
        out.masked_fill_(torch.arange(width) >= torch.from_numpy(lengths)[:, None], fill)
        return out

    def runs(
        self, rows: np.ndarray, first: np.ndarray, lengths: np.ndarray, places: np.ndarray, out: Tensor
    ) -> None:
        """Copy values first … first + length - 1 of rows to `places` (ascending, no two overlap) of the flat `out`.

        What lies between the places is left with anything.
        """
        copy_runs(self._memory, self._starts[rows] + first, lengths, places, out)

    def bytes_of(self, rows: np.ndarray) -> list[memoryview]:
        """The values of each of these rows as they lie there: to be read at once, and never handed out."""
        memory, starts = self._memory.numpy().data, self._starts[rows]
        ends = starts + self.lengths[rows]
        return [memory[begin:end] for begin, end in zip(starts.tolist(), ends.tolist(), strict=True)]

    def jpeg_forms(self, rows: np.ndarray) -> np.ndarray | None:
        """int64 [rows, 3]: height, width, colours of encoded pictures; zeros for others than JPEG. None: not known."""
        if native.library() is None or self.dtype != torch.uint8:
            return None
        return native.jpeg_forms(rows, self._starts, self.lengths, self._memory)

    def _one_by_one(self, out: Tensor, at: np.ndarray, lengths: np.ndarray, fill: int) -> Tensor:
        out.fill_(fill)
        for row, (begin, length) in enumerate(zip(at.tolist(), lengths.tolist(), strict=True)):
            out[row, :length] = self._memory[begin : begin + length]
        return out


def take_rows(tensor: Tensor, rows: np.ndarray, out: Tensor) -> Tensor:
    """`out` = tensor[rows], copied outside the interpreter's lock. IndexError for a row that is not there."""
    if native.library() is not None and tensor.is_contiguous() and out.is_contiguous():
        native.gather_rows(rows, len(tensor), None, tensor.nbytes // max(len(tensor), 1), tensor, out)
        return out
    return torch.index_select(tensor, 0, torch.from_numpy(rows), out=out)


def copy_runs(
    memory: Tensor, begin: np.ndarray, lengths: np.ndarray, places: np.ndarray, out: Tensor
) -> None:
    """Runs of `memory` from `begin` on to ascending `places` of `out`, both flat; gaps are left with anything.

    Without a compiler all runs are cut into tiles of one width and copied at once, each a little too far; what the
    tile after it does not write again is a gap. Three times as fast as a copy for each run where runs are short.
    raises: IndexError for a run that is not there.
    """
    if not len(lengths):
        return
    if int((begin + lengths).max()) > memory.numel() or int((places + lengths).max()) > out.numel():
        raise IndexError(f"runs beyond {memory.numel()} values read or {out.numel()} written")
    if native.library() is not None:
        return native.copy_runs(begin, lengths, places, memory, out)
    width = 1 << int(np.clip(np.ceil(np.log2(max(lengths.mean(), 1))), 4, 9))
    tiles = np.maximum(-(-lengths // width), 1)
    inside = (np.arange(int(tiles.sum())) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * width
    read, write = np.repeat(begin, tiles) + inside, np.repeat(places, tiles) + inside
    safe = (read + width <= memory.numel()) & (write + width <= out.numel())
    if width > 256 or not _in_order() or not safe.any():
        safe[:] = False
    else:
        view = memory.as_strided((memory.numel() - width + 1, width), (1, 1))
        copied = torch.index_select(view, 0, torch.from_numpy(read[safe])).numpy()
        size = out.element_size()
        shape, strides = (out.numel() - width + 1, width), (size, size)
        as_strided(out.numpy(), shape, strides)[write[safe]] = copied
    exact = np.minimum(np.repeat(lengths, tiles) - inside, width)
    source, target, rest = memory.numpy(), out.numpy(), ~safe
    for at, count, place in zip(read[rest].tolist(), exact[rest].tolist(), write[rest].tolist(), strict=True):
        target[place : place + count] = source[at : at + count]


@cache
def _in_order() -> bool:
    """Whether numpy writes overlapping rows in the order of the index, as it always has without promising it."""
    probe = np.zeros(200, np.int32)
    rows = np.arange(1, 97, dtype=np.int32)
    as_strided(probe, (193, 8), (4, 4))[np.arange(96) * 2] = rows[:, None]
    return bool((probe[: 96 * 2 : 2] == rows).all() and (probe[1 : 96 * 2 : 2] == rows).all())


def fixed(column: Any) -> Fixed | None:
    """The chunked Arrow array as `Fixed`; None where it has missing values or its rows are not of one shape."""
    addresses, counts, shape, dtype = [], [], None, None
    for chunk in column.chunks:
        found = _flat(chunk)
        if found is None or (shape is not None and found[1] != shape and len(chunk)):
            return None
        values, shape_here = found
        if len(chunk):
            shape, dtype = shape_here, _DTYPES[str(values.type)]
            addresses.append(values.buffers()[1].address + values.offset * dtype.itemsize)
            counts.append(len(chunk))
    if shape is None or dtype is None or any(at % dtype.itemsize for at in addresses):
        return None
    return Fixed(addresses, counts, shape, dtype, column)


def ragged(column: Any) -> Ragged | None:
    """The chunked Arrow array of lists, texts or bytes as `Ragged`; None where it is none or has missing values."""
    pieces, dtype = [], None
    for chunk in column.chunks:
        array = _storage(chunk)
        is_bytes = _is_bytes(array.type)
        if array.null_count or not (is_bytes or _has_offsets(array.type)):
            return None
        offsets = _offsets(array)
        if is_bytes:
            dtype, address = torch.uint8, array.buffers()[2].address if array.buffers()[2] else 0
        else:
            values = _storage(array.values)
            if values.null_count or str(values.type) not in _DTYPES:
                return None
            dtype = _DTYPES[str(values.type)]
            address = values.buffers()[1].address + values.offset * dtype.itemsize if len(values) else 0
        pieces.append((address, offsets))
    if dtype is None or any(at % dtype.itemsize for at, _ in pieces):
        return None
    return Ragged(pieces, dtype, column)


def _offsets(array: Any) -> np.ndarray:
    """Offsets of a list or binary array's own rows, int64 [rows + 1]."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array) + 1, np.int64)
    kind = np.int64 if str(array.type).startswith("large") else np.int32
    whole = np.frombuffer(buffer, kind)
    return whole[array.offset : array.offset + len(array) + 1].astype(np.int64)


def _flat(chunk: Any) -> tuple[Any, tuple[int, ...]] | None:
    """The values of a chunk and the shape of one of its rows."""
    import pyarrow as pa

    array, shape = _storage(chunk), []
    while True:
        if array.null_count:
            return None
        if pa.types.is_fixed_size_list(array.type):
            size = array.type.list_size
            array, size_of_rows = _storage(array.values.slice(array.offset * size, len(array) * size)), size
        elif _has_offsets(array.type):
            offsets = _offsets(array)
            widths = np.diff(offsets)
            if len(widths) and (widths != widths[0]).any():
                return None
            size_of_rows = int(widths[0]) if len(widths) else 0
            array = _storage(array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0])))
        else:
            break
        shape.append(size_of_rows)
    return (array, tuple(shape)) if str(array.type) in _DTYPES and not array.null_count else None


def _storage(array: Any) -> Any:
    import pyarrow as pa

    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _has_offsets(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _memory(address: int, size: int, dtype: torch.dtype) -> Tensor:
    """`size` bytes at `address` as a flat tensor; nothing is copied and nothing read."""
    if size <= 0:
        return torch.empty(0, dtype=dtype)
    raw: Any = (ctypes.c_char * size).from_address(address)
    return torch.from_numpy(np.frombuffer(raw, np.uint8)).view(dtype)
