"""Rows that were made once, on disk: Arrow files with checksums, for every later run and all ranks of a node."""

import errno
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .cache import bytes_of
from .mapped import Fixed, Make
from .preparing import Progress, alone
from .source import ColumnInfo, Source

_CHUNK = 4096  # rows made and written at a time


class StoredSource:
    """`source` whose first rows are read from an Arrow file, as many as it holds."""

    reuses = True

    def __init__(self, source: Source, file: Path) -> None:
        self._source, self._file = source, file
        self.columns: Mapping[str, ColumnInfo] = source.columns
        self.concurrent = getattr(source, "concurrent", False)
        self._columns = _mapped(file, source.columns)
        self.rows = next(iter(self._columns.values()))[1]
        """Rows that the file holds."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __reduce__(self) -> Any:
        return StoredSource, (self._source, self._file)

    @property
    def fingerprint(self) -> str:
        """The source's."""
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, rows: np.ndarray, make: Make | None = None) -> dict[str, Tensor]:
        """Column → [len(rows), …]."""
        make = make or (lambda shape, dtype: torch.empty(shape, dtype=dtype))
        inside = rows < self.rows
        if inside.all():
            return {name: self._read(name, rows, make) for name in self.columns}
        here, there = np.flatnonzero(inside), np.flatnonzero(~inside)
        made, out = self._source.gather(rows[there]), {}
        for name, info in self.columns.items():
            out[name] = make((len(rows), *info.shape), info.dtype)
            fresh = self._read(name, rows[here], lambda shape, dtype: torch.empty(shape, dtype=dtype))
            out[name].index_copy_(0, torch.from_numpy(here), fresh)
            out[name].index_copy_(0, torch.from_numpy(there), made[name])
        return out

    def _read(self, name: str, rows: np.ndarray, make: Make) -> Tensor:
        info = self.columns[name]
        if not len(rows):
            return make((0, *info.shape), info.dtype)
        out = make((len(rows), *info.shape), info.dtype)
        flat = (
            out.view(torch.uint8).view(len(rows), -1) if info.dtype != torch.bool else out.view(len(rows), -1)
        )
        self._columns[name][0].gather(rows, lambda shape, dtype: flat.view(torch.uint8))
        return out


def stored(source: Any, folder: str | Path, budget: int, key: str) -> Any:
    """`source` with its first rows (as many as `budget` bytes hold) in `folder`; written now where they are not there.

    One process of a node writes, the others wait; the file appears whole or not at all. A damaged file is made anew.
    raises: DataError where the disk is full or the folder cannot be written.
    cost:   every row is made once, and the file's checksum is read once when it is opened (1 GB a second).
    """
    if getattr(source, "ragged", None):
        raise DataError("data.cache.folder: rows of different lengths cannot be stored; give them one length")
    width = bytes_of(source.columns, 1)
    rows = min(len(source), budget // max(width, 1))
    if rows < 1:
        return source
    place = Path(folder)
    file = place / f"{key}-{rows}.arrow"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with alone(place / f"{key}.lock"):
            if not _is_whole(file):
                _make_room(place, budget - rows * width, spare=file)
                _write(source, rows, file)
    except OSError as error:
        full = " is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f": {error.strerror}"
        raise DataError(
            f"data.cache.folder: {place}{full} ({rows * width / 2**20:,.0f} MiB are wanted); free space, give "
            "data.cache.disk less, or another folder"
        ) from error
    return StoredSource(source, file)


def _write(source: Any, rows: int, file: Path) -> None:
    import pyarrow as pa

    schema = pa.schema(
        [pa.field(name, pa.binary(bytes_of({name: info}, 1))) for name, info in source.columns.items()]
    )
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    progress = Progress(rows, "rows")
    try:
        with temporary.open("wb") as raw:
            with pa.ipc.new_stream(raw, schema) as writer:
                for begin in range(0, rows, _CHUNK):
                    made = source.gather(np.arange(begin, min(begin + _CHUNK, rows)))
                    writer.write_batch(_record(made, schema))
                    progress.add(_CHUNK)
            raw.flush()
            os.fsync(raw.fileno())
        note = {"bytes": temporary.stat().st_size, "crc32": _checksum(temporary)}
        _note(file).write_text(json.dumps(note))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _record(made: dict[str, Tensor], schema: Any) -> Any:
    import pyarrow as pa

    arrays = []
    for field in schema:
        content = np.ascontiguousarray(made[field.name].contiguous().numpy())
        buffer = pa.py_buffer(content.reshape(-1).view(np.uint8))
        arrays.append(pa.Array.from_buffers(field.type, len(content), [None, buffer]))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _mapped(file: Path, columns: Mapping[str, ColumnInfo]) -> dict[str, tuple[Fixed, int]]:
    import pyarrow as pa

    table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    found = {}
    for name in columns:
        column = table.column(name)
        size = column.type.byte_width
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        addresses = [chunk.buffers()[1].address + chunk.offset * size for chunk in chunks]
        reader = Fixed(addresses, [len(chunk) for chunk in chunks], (size,), torch.uint8, table)
        found[name] = (reader, len(column))
    return found


def _is_whole(file: Path) -> bool:
    try:
        note = json.loads(_note(file).read_text())
        return file.stat().st_size == note["bytes"] and _checksum(file) == note["crc32"]
    except (OSError, ValueError, KeyError):
        return False


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as content:
        while block := content.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _note(file: Path) -> Path:
    return file.with_suffix(".json")


def _make_room(place: Path, allowed: int, *, spare: Path) -> None:
    """Delete the files that were read longest ago until the others take at most `allowed` bytes."""
    others = sorted(
        (file for file in place.glob("*.arrow") if file != spare), key=lambda file: file.stat().st_atime
    )
    taken = sum(file.stat().st_size for file in others)
    for file in others:
        if taken <= allowed:
            return
        taken -= file.stat().st_size
        file.unlink(missing_ok=True)
        _note(file).unlink(missing_ok=True)
