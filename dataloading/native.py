"""The few loops that are worth a compiler, compiled once for a machine and called outside Python's lock.

Where there is no C compiler everything works without, and gives the same bits: slower where rows are short.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..c_functions import load

_SOURCE = Path(__file__).with_name("native.c")
_TAKES = {
    "rows": "npnpnnpp",
    "padded": "npnppnnpp",
    "runs": "npppnpp",
    "marks": "npppnnncppp",
    "best_fit": "npnppp",
    "permuted": "npuunpp",
    "jpeg_forms": "npnpppp",
}
_Numbers = np.ndarray


@cache
def library() -> Any:
    """The compiled functions of native.c; None where they cannot be had (see `c_functions.load`)."""
    return load(_SOURCE, _TAKES, counts=("rows", "padded", "best_fit", "jpeg_forms"))


def gather_rows(
    rows: _Numbers, total: int, table: _Numbers | None, unit: int, source: Tensor, out: Tensor
) -> None:
    """out [rows, …] = rows of `source`'s memory, each as wide as a row of `out`.

    rows:  int64, 0 to total - 1; row r begins at byte unit · r, or unit · table[r].
    raises: IndexError for a row that is not there.
    """
    rows = np.ascontiguousarray(rows, np.int64)
    width = out.nbytes // max(len(rows), 1)
    place = None if table is None else _at(table)
    sizes = (total, place, unit, width)
    wrong = library().forgepress_rows(len(rows), _at(rows), *sizes, _of(source), _of(out))
    _check(wrong, rows, total)


def gather_padded(rows: _Numbers, starts: _Numbers, lengths: _Numbers, source: Tensor, out: Tensor) -> None:
    """out [rows, width] = the first values of each row, then zeros.

    starts, lengths: int64 [all rows], in values of `source`.   raises: IndexError for a row that is not there.
    """
    rows = np.ascontiguousarray(rows, np.int64)
    item, total = source.element_size(), len(starts)
    places = (_at(rows), total, _at(starts), _at(lengths))
    wide = (item, out.shape[1])
    wrong = library().forgepress_padded(len(rows), *places, *wide, _of(source), _of(out))
    _check(wrong, rows, total)


def copy_runs(begin: _Numbers, lengths: _Numbers, places: _Numbers, source: Tensor, out: Tensor) -> None:
    """Runs of values of the flat `source` to `places` of the flat `out`; all int64 [runs]."""
    runs = [np.ascontiguousarray(one, np.int64) for one in (begin, lengths, places)]
    item = source.element_size()
    library().forgepress_runs(len(begin), *map(_at, runs), item, _of(source), _of(out))


def mark_documents(
    first: _Numbers,
    lengths: _Numbers,
    rows: _Numbers,
    padding: bytes,
    tokens: Tensor,
    marks: tuple[Tensor, Tensor],
) -> None:
    """marks (document, position; int32 [rows, length]) of packed `tokens`, whose ends become `padding`.

    first, lengths, rows: int64 of every piece, ordered by row and place, without gaps.
    """
    pieces = [np.ascontiguousarray(one, np.int64) for one in (first, lengths, rows)]
    shape = (len(tokens), tokens.shape[1], tokens.element_size())
    document, position = marks
    library().forgepress_marks(
        len(first), *map(_at, pieces), *shape, padding, _of(document), _of(position), _of(tokens)
    )


def best_fit(sizes: _Numbers, length: int) -> tuple[_Numbers, _Numbers, _Numbers]:
    """Pieces in their final order, and the row and place of each: see `packing`. sizes: int64, 1 to length."""
    sizes = np.ascontiguousarray(sizes, np.int64)
    final, rows, places = (np.empty(len(sizes), np.int64) for _ in range(3))
    outs = (_at(final), _at(rows), _at(places))
    if library().forgepress_best_fit(len(sizes), _at(sizes), length, *outs) < 0:
        raise MemoryError(f"packing {len(sizes)} pieces into rows of {length}")
    return final, rows, places


def jpeg_forms(rows: _Numbers, starts: _Numbers, lengths: _Numbers, source: Tensor) -> _Numbers:
    """int64 [rows, 3]: height, width and number of colours of each row's JPEG picture, zeros for anything else.

    starts, lengths: int64 [all rows], in bytes of `source`.   raises: IndexError for a row that is not there.
    """
    rows = np.ascontiguousarray(rows, np.int64)
    forms = np.empty((len(rows), 3), np.int64)
    given = (_at(rows), len(starts), _at(starts), _at(lengths))
    _check(library().forgepress_jpeg_forms(len(rows), *given, _of(source), _at(forms)), rows, len(starts))
    return forms


def permuted(positions: _Numbers, size: int, base: int, words: _Numbers) -> _Numbers:
    """`bijection.Permutation` at positions, int64. words: uint32, one for each round."""
    positions = np.ascontiguousarray(positions, np.int64)
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < size:
        raise IndexError(f"positions beyond the {size} of a permutation")
    out = np.empty(len(positions), np.int64)
    numbers = (size, base, len(words))
    library().forgepress_permuted(len(positions), _at(positions), *numbers, _at(words), _at(out))
    return out


def _check(wrong: int, rows: _Numbers, total: int) -> None:
    if wrong != -1:
        raise IndexError(f"row {rows[wrong]} of {total}")


def _at(array: _Numbers) -> int:
    return array.__array_interface__["data"][0]


def _of(tensor: Tensor) -> int:
    return tensor.data_ptr()
