"""Values by row number in files: written once while rows pass, read by every process of the run from then on."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import CheckpointError

_CHUNK = 4096  # rows copied at a time when parts become one file
_ALL = "all"


class RowCache:
    """One value of fixed shape (float32 or int32) for each of `rows` rows, in `folder`.

    Every process appends what it has to a part of its own, so that no two write the same file and a killed one
    loses only what was on its way. When all rows are known, one process makes the parts into one file in the order
    of rows, which all map into memory: processes of one machine share its pages.

    cost: a row's bytes on disk, twice while parts become one; 10 bytes a row in memory until then.
    """

    def __init__(self, folder: Path, rows: int, *, writer: str) -> None:
        """writer: name of this process's part; no two processes, also of earlier sessions, may have the same."""
        self.folder, self.rows, self.writer = folder, rows, writer
        self.complete = False
        self.known = 0
        self._dense: Tensor | None = None
        self._parts: list[np.ndarray] = []
        self._part = np.full(rows, -1, dtype=np.int16)
        self._slot = np.zeros(rows, dtype=np.int64)
        self._files: tuple[int, int] | None = None

    @property
    def bytes(self) -> int:
        """Of the values of all rows, as far as they are known."""
        return sum(part.nbytes for part in self._parts) if self._dense is None else self._dense.nbytes

    def scan(self) -> None:
        """See what all processes have written so far; each must have done its writing before."""
        if (self.folder / f"{_ALL}.data").exists():
            self._dense = torch.from_numpy(self._map(_ALL, self.rows))
            self.complete, self.known, self._parts = True, self.rows, []
            return
        self._parts = []
        self._part.fill(-1)
        for path in sorted(self.folder.glob("*.rows")):
            name = path.name.removesuffix(".rows")
            count = min(
                path.stat().st_size // 8, self._count(name)
            )  # a killed process may have left half a row
            numbers = np.fromfile(path, dtype=np.int64, count=count)
            if not count:
                continue
            self._part[numbers] = len(self._parts)
            self._slot[numbers] = np.arange(count)
            self._parts.append(self._map(name, count))
        self.known = int((self._part >= 0).sum())
        self.complete = self.known == self.rows

    def holds(self, rows: Tensor) -> bool:
        """Whether all of `rows` (int64) were there at the last `scan`."""
        return self._dense is not None or bool((self._part[rows.numpy()] >= 0).all())

    def read(self, rows: Tensor) -> Tensor:
        """[len(rows), …] on the CPU, the very bits that were written; rows that `holds` says are there."""
        if self._dense is not None:
            return self._dense.index_select(0, rows)
        numbers = rows.numpy()
        shape = self._parts[0].shape[1:] if self._parts else ()
        found = np.empty((len(numbers), *shape), self._parts[0].dtype if self._parts else np.float32)
        of, at = self._part[numbers], self._slot[numbers]
        for index in np.unique(of):
            here = of == index
            found[here] = self._parts[index][at[here]]
        return torch.from_numpy(found)

    def write(self, rows: Tensor, values: Tensor) -> None:
        """Append values [len(rows), …]; every row once would do, twice does no harm.

        raises: CheckpointError where the disk does not take them.
        """
        if not len(rows):
            return
        plain = values.detach().cpu().contiguous().numpy()
        try:
            if self._files is None:
                self._files = self._open(plain)
            # Values first: a row counts from when its number is there.
            for file, content in zip(self._files, (plain, rows.numpy()), strict=True):
                _write_all(file, content)
        except OSError as error:
            raise CheckpointError(
                f"teacher cache {self.folder}: cannot be written ({error}); free space there, keep fewer values "
                "(top_k), or set cache: false"
            ) from error

    def merge(self) -> None:
        """Make the parts one file in the order of rows. One process alone, after a `scan` that found all rows."""
        if self._dense is not None:
            return
        form = {"dtype": str(self._parts[0].dtype), "shape": self._parts[0].shape[1:]}
        partial = self.folder / f"{_ALL}.partial"
        whole = np.memmap(partial, form["dtype"], "w+", shape=(self.rows, *form["shape"]))
        for begin in range(0, self.rows, _CHUNK):
            numbers = torch.arange(begin, min(begin + _CHUNK, self.rows))
            whole[begin : begin + _CHUNK] = self.read(numbers).numpy()
        whole.flush()
        del whole
        (self.folder / f"{_ALL}.json").write_text(json.dumps(form))
        os.replace(partial, self.folder / f"{_ALL}.data")
        for path in self.folder.glob("*.rows"):
            for kind in ("rows", "data", "json"):
                path.with_suffix(f".{kind}").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the part that was written."""
        for file in self._files or ():
            os.close(file)
        self._files = None

    def _open(self, values: np.ndarray) -> tuple[int, int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        form = {"dtype": str(values.dtype), "shape": values.shape[1:]}
        (self.folder / f"{self.writer}.json").write_text(json.dumps(form))
        mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        data, rows = (
            os.open(self.folder / f"{self.writer}.{kind}", mode, 0o666) for kind in ("data", "rows")
        )
        return data, rows

    def _form(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        form = json.loads((self.folder / f"{name}.json").read_text())
        return np.dtype(form["dtype"]), tuple(form["shape"])

    def _count(self, name: str) -> int:
        dtype, shape = self._form(name)
        return (self.folder / f"{name}.data").stat().st_size // (dtype.itemsize * math.prod(shape))

    def _map(self, name: str, count: int) -> np.ndarray:
        dtype, shape = self._form(name)
        # "c": pages are shared with other processes, and torch does not warn of memory that it must not write
        return np.memmap(self.folder / f"{name}.data", dtype, "c", shape=(count, *shape))


def _write_all(file: int, content: np.ndarray) -> None:
    rest = memoryview(content.tobytes())
    while rest:
        rest = rest[os.write(file, rest) :]
