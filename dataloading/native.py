"""The few loops that are worth a compiler, compiled once for a machine and called outside Python's lock.

Where there is no C compiler everything works without, and gives the same bits: slower where rows are short.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

_OFF = "FORGEPRESS_NATIVE"  # 0: as if there were no compiler
_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-std=c99", "-O3", "-shared", "-fPIC")
_PATIENCE = 60  # seconds for a compiler that takes one
_TAKES = {
    "rows": "npnpnnpp",
    "padded": "npnppnnpp",
    "runs": "npppnpp",
    "marks": "npppnnncppp",
    "best_fit": "npnppp",
    "permuted": "npuunpp",
}  # of each function: n a number, u one without sign, p an address, c bytes
_KINDS = {"n": ctypes.c_int64, "u": ctypes.c_uint64, "p": ctypes.c_void_p, "c": ctypes.c_char_p}
_Numbers = np.ndarray


@cache
def library() -> Any:
    """The compiled functions of native.c; None where they cannot be had.

    They are compiled at the first use on a machine (0.3 s) into the user's cache folder, whole or not at all.
    FORGEPRESS_NATIVE=0 does without.
    """
    if os.environ.get(_OFF) == "0":
        return None
    try:
        found = ctypes.CDLL(str(_compiled()))
        for name, words in _TAKES.items():
            function = getattr(found, f"forgepress_{name}")
            function.argtypes = [_KINDS[word] for word in words]
            function.restype = ctypes.c_int64 if name in ("rows", "padded", "best_fit") else None
        return found
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None


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


def permuted(positions: _Numbers, size: int, base: int, words: _Numbers) -> _Numbers:
    """`bijection.Permutation` at positions, int64. words: uint32, one for each round."""
    positions = np.ascontiguousarray(positions, np.int64)
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < size:
        raise IndexError(f"positions beyond the {size} of a permutation")
    out = np.empty(len(positions), np.int64)
    numbers = (size, base, len(words))
    library().forgepress_permuted(len(positions), _at(positions), *numbers, _at(words), _at(out))
    return out


def _compiled() -> Path:
    content = _SOURCE.read_bytes()
    mark = hashlib.sha256(content + repr((_FLAGS, platform.machine(), platform.libc_ver())).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forgepress"
    made = folder / f"native-{mark.hexdigest()[:16]}.so"
    if made.is_file() and made.stat().st_uid == os.getuid():
        return made
    said = (sysconfig.get_config_var("CC") or "cc").split()[0]
    compiler = next((found for name in (said, "cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError("no C compiler")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # ranks that come at once each make their own
        new = Path(scratch) / "native.so"
        order = [compiler, *_FLAGS, str(_SOURCE), "-o", str(new)]
        subprocess.run(order, check=True, capture_output=True, timeout=_PATIENCE)
        new.replace(made)
    return made


def _check(wrong: int, rows: _Numbers, total: int) -> None:
    if wrong != -1:
        raise IndexError(f"row {rows[wrong]} of {total}")


def _at(array: _Numbers) -> int:
    return array.__array_interface__["data"][0]


def _of(tensor: Tensor) -> int:
    return tensor.data_ptr()
