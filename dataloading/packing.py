"""Documents of any length packed into rows of one length, none of their tokens lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError
from . import native
from .order import Order
from .recent import Recent

_INDEX_BITS = 32  # a packed row's number: its window above, its place in the window below


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Fixed rows of `length` tokens made of whole or cut documents.

    A batch has the column of tokens and beside it `document` (number of the document in its row from 1, 0: padding)
    and `position` (of the token in its document): what attention masks and position embeddings need.
    """

    length: int
    """Tokens in a row."""
    split: Literal["long", "any"] = "long"
    """long: only documents longer than a row are cut, and rows end in padding where nothing fits any more; any: rows
    are filled to the last token and documents are cut where a row ends."""
    window: int = 4096
    """Documents that are packed together."""
    padding: int = 0
    """The token that fills up."""

    def __post_init__(self) -> None:
        for word in ("length", "window"):
            if type(getattr(self, word)) is not int or getattr(self, word) < 1:
                raise ConfigError(f"data: pack.{word}={getattr(self, word)!r}; want 1 or more")
        if self.split not in ("long", "any"):
            raise ConfigError(f"data: pack.split={self.split!r}; want long or any")


@dataclass(frozen=True)
class Pieces:
    """Consecutive tokens of documents and where they go, all int64 [pieces], ordered by row and place."""

    documents: np.ndarray
    first: np.ndarray
    """Token of the document with which the piece begins."""
    lengths: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    """Token of the row at which the piece goes."""


class PackedOrder(Order):
    """Packed rows over an order of documents, in aligned windows of documents; every window is packed by itself.

    lengths: tokens of every document, int64.
    source:  best fit decreasing (Johnson 1974) for split=long.   cost: 0.1 µs a document, once an epoch and window
             (1 µs without a compiler).
    """

    def __init__(self, base: Order, lengths: np.ndarray, packing: Packing) -> None:
        self._base, self._lengths, self.packing = base, lengths, packing
        self._packed = Recent(self._pack, 4)
        self._counted = Recent(self._count, 1 << 16)

    def describe(self) -> Mapping[str, Any]:
        packing = self.packing
        kind = {"kind": "packed", "length": packing.length, "split": packing.split, "window": packing.window}
        return {**kind, "base": dict(self._base.describe())}

    def windows(self, epoch: int) -> int:
        return -(-self._base.count(epoch, 0) // self.packing.window)

    def count(self, epoch: int, window: int) -> int:
        return self._counted(epoch, window)

    def items(self, epoch: int, window: int, positions: np.ndarray) -> np.ndarray:
        """Numbers of packed rows, for `pieces`."""
        return (window << _INDEX_BITS) | positions

    def pieces(self, epoch: int, items: np.ndarray) -> Pieces:
        """What the packed rows `items` are made of; `rows` number the items from 0."""
        windows, places = items >> _INDEX_BITS, items & ((1 << _INDEX_BITS) - 1)
        changes = np.flatnonzero(np.diff(windows)) + 1  # rows of one window stand together
        parts = [np.empty((5, 0), np.int64)]
        for begin, end in pairwise([0, *changes.tolist(), len(items)] if len(items) else []):
            table, edges = self._packed(epoch, int(windows[begin]))
            row = places[begin:end]
            counts = edges[row + 1] - edges[row]
            ends = np.cumsum(counts)
            at = np.arange(int(ends[-1])) + np.repeat(edges[row] - (ends - counts), counts)
            found = table[:, at]
            found[3] = np.repeat(np.arange(begin, end), counts)
            parts.append(found)
        return Pieces(*np.concatenate(parts, axis=1))

    def _count(self, epoch: int, window: int) -> int:
        if self.packing.split == "any":
            return -(-int(self._lengths[self._documents(epoch, window)].sum()) // self.packing.length)
        return len(self._packed(epoch, window)[1]) - 1

    def _documents(self, epoch: int, window: int) -> np.ndarray:
        begin = window * self.packing.window
        end = min(begin + self.packing.window, self._base.count(epoch, 0))
        return self._base.items(epoch, 0, np.arange(begin, end, dtype=np.int64))

    def _pack(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The fields of all pieces of a window [5, pieces], and the piece with which each row begins (and the end)."""
        documents = self._documents(epoch, window)
        lengths = self._lengths[documents]
        pack = _cut_anywhere if self.packing.split == "any" else _best_fit
        which, first, sizes, rows, places = pack(lengths, self.packing.length)
        edges = np.searchsorted(rows, np.arange(rows[-1] + 2 if len(rows) else 1))
        return np.stack([documents[which], first, sizes, rows, places]), edges


Packed = tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray
]  # document, first, length, row, place


def _cut_anywhere(lengths: np.ndarray, length: int) -> Packed:
    """Documents end to end, cut where rows end."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.unique(np.concatenate([ends - lengths, np.arange(0, total, length)])[:])
    cuts = cuts[cuts < total]
    sizes = np.diff(np.append(cuts, total))
    which = np.searchsorted(ends, cuts, side="right")
    return which, cuts - (ends - lengths)[which], sizes, cuts // length, cuts % length


def _best_fit(lengths: np.ndarray, length: int) -> Packed:
    """Longest pieces first, each into the fullest row that still has room for it."""
    pieces = np.maximum(-(-lengths // length), 0)
    which = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = number * length
    sizes = np.minimum(lengths[which] - first, length)
    if native.library() is not None:
        final, rows, places = native.best_fit(sizes, length)
        return which[final], first[final], sizes[final], rows, places
    order = np.argsort(-sizes, kind="stable")
    rows, places = np.empty(len(which), np.int64), np.empty(len(which), np.int64)
    with_room: dict[int, list[int]] = {}  # room → rows that have exactly that much
    rooms = 0  # bit r: some row has room r; the lowest bit from the size on is the best fit
    count = 0
    for piece, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fits = rooms >> size
        if fits:
            room = size + (fits & -fits).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row, count = length, count, count + 1
        rows[piece], places[piece] = row, length - room
        if room > size:
            rooms |= 1 << (room - size)
            with_room.setdefault(room - size, []).append(row)
    # Rows in the order of their first documents: rows that hold the long ones would else come first in every window.
    earliest = np.full(count, len(which), np.int64)
    np.minimum.at(earliest, rows, np.arange(len(which)))
    renamed = np.empty(count, np.int64)
    renamed[np.argsort(earliest, kind="stable")] = np.arange(count)
    rows = renamed[rows]
    final = np.lexsort((places, rows))
    return which[final], first[final], sizes[final], rows[final], places[final]
