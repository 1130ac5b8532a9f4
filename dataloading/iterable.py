"""A `datasets.IterableDataset` as rows by number: its shards are blocks, counted once for a node."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .blocks import BlockSource
from .fingerprint import combined
from .parquet import ParquetSource
from .preparing import Progress, alone
from .source import Source

_ROWS = 1000  # taken from a stream at a time
_ORDERS = ("Shuffled", "Cycling", "Repeat", "Skip", "Take", "Step")


def iterable_source(data: Any, *, length: int | None = None) -> Source:
    """Rows of an IterableDataset, for `shuffle=N` over its shards; resumable on any mesh, as every source.

    Local Parquet files that nothing was done to are read as `ParquetSource`: only their footers are looked at.
    raises: DataError for streams in an order of their own (shuffle, take, skip, repeat, interleave): the Loader
            decides the order, and a drawn one could not be gone back to.
    """
    if found := _parquet_files(data):
        files, names = found
        return ParquetSource(files, names, length=length, widen=False)
    return IterableSource(data, length=length)


class IterableSource(BlockSource):
    """The shards of a stream one after the other; a shard is read from its start when one of its rows is asked for.

    data:   a `datasets.IterableDataset` made of files, tables or a generator, with map, filter, select or rename.
    kept:   read shards kept in memory at a time; at least the N of `shuffle=N`.
    length: see `Columns`.
    raises: DataError for an order of its own, no row, or data that changed since they were counted.
    cost:   the first process of a node reads everything once to count rows (kept in the cache folder of `datasets`);
            `kept` whole shards of memory. More and smaller files make smaller shards.
    """

    def __init__(self, data: Any, *, kept: int = 8, length: int | None = None) -> None:
        _refuse_orders(data)
        self._given, self._options = data, {"kept": kept, "length": length}
        self._data = data.reshard().with_format("arrow")
        self._counted = _counted(self._data)
        sizes = np.array([rows for rows, _ in self._counted])
        if not sizes.sum():
            raise DataError("the IterableDataset gave no row; want at least one")
        first = self._table(int(np.flatnonzero(sizes)[0]))
        self.fingerprint = combined(self._counted, first.schema.names, length)
        self._open(sizes, {name: name for name in first.schema.names}, kept=kept, length=length, widen=False)

    def __reduce__(self) -> Any:
        return _again, (self._given, self._options)

    def _table(self, number: int) -> Any:
        import pyarrow as pa

        tables = list(_tables(self._data, number))
        if (sum(map(len, tables)), _mark(tables)) != self._counted[number]:
            raise DataError(
                f"shard {number} of the IterableDataset is another one than when its rows were counted; want data that "
                f"are the same at each reading: if the files have changed, delete {_note(self._data)}"
            )
        return pa.concat_tables(tables)


def _counted(data: Any) -> list[tuple[int, int]]:
    """(rows, checksum) of every shard."""
    note = _note(data)
    with alone(note.with_suffix(".lock")):
        if note.is_file():
            return [(int(rows), int(mark)) for rows, mark in json.loads(note.read_text())]
        found, progress = [], Progress(data.num_shards, "shards counted")
        for number in range(data.num_shards):
            tables = list(_tables(data, number))
            found.append((sum(map(len, tables)), _mark(tables)))
            progress.add(1)
        whole = note.with_suffix(".tmp")
        whole.write_text(json.dumps(found))
        whole.replace(note)
        return found


def _note(data: Any) -> Path:
    """Where the counts of a stream are kept: it is called by what is done to which files of which size and time."""
    from datasets.config import HF_DATASETS_CACHE
    from datasets.fingerprint import Hasher

    inner = data._ex_iterable
    files = [str(file) for step in _steps(inner) for file in _files(getattr(step, "kwargs", {}))]
    stats = [(file, Path(file).stat()) for file in files if Path(file).is_file()]
    mark = combined(Hasher.hash(inner), [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats])
    return Path(HF_DATASETS_CACHE) / "forgepress" / f"{mark}.counts.json"


def _tables(data: Any, number: int) -> Any:
    shard = data.shard(num_shards=data.num_shards, index=number)
    return (table.combine_chunks() for table in shard.iter(batch_size=_ROWS))


def _mark(tables: list[Any]) -> int:
    """Of every byte of the values, however they were cut into tables."""
    import pyarrow as pa

    if not tables:
        return 0
    sink = pa.BufferOutputStream()
    whole = pa.concat_tables(tables).combine_chunks()
    with pa.ipc.new_stream(sink, whole.schema.remove_metadata()) as writer:
        writer.write_table(whole.replace_schema_metadata(None))
    return zlib.crc32(sink.getvalue())


def _steps(inner: Any) -> list[Any]:
    """The parts of a stream, from the last to the first."""
    found = []
    while inner is not None:
        found.append(inner)
        inner = getattr(inner, "ex_iterable", None)
    return found


def _refuse_orders(data: Any) -> None:
    for step in _steps(data._ex_iterable):
        name = type(step).__name__
        if any(word in name for word in _ORDERS):
            raise DataError(
                f"the IterableDataset has an order of its own ({name}); want it without shuffle, take, skip, repeat "
                "and interleave: give Loader shuffle=N, or several sources with weights"
            )


def _files(kwargs: Mapping[str, Any]) -> list[Any]:
    given = kwargs.get("files", kwargs.get("base_files", ()))
    return [file for one in given for file in (one if isinstance(one, list | tuple) else [one])]


def _parquet_files(data: Any) -> tuple[list[Any], dict[str, str]] | None:
    """Local files and columns of a stream that is nothing but these."""
    inner = data._ex_iterable
    builder = getattr(getattr(inner, "generate_tables_fn", None), "__self__", None)
    config = getattr(builder, "config", None)
    kwargs = getattr(inner, "kwargs", {})
    plain = type(builder).__name__ == "Parquet" and getattr(config, "filters", None) is None
    if not plain or any(groups is not None for groups in kwargs.get("row_groups_list", [0])):
        return None
    files = _files(kwargs)
    if not files or not all(Path(str(file)).is_file() for file in files) or data.features is None:
        return None
    return files, {name: name for name in data.features}


def _again(data: Any, options: dict[str, Any]) -> IterableSource:
    return IterableSource(data, **options)
