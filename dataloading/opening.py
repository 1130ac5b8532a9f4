"""Whatever people have their data in, as a source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .fingerprint import combined, of_buffers, of_files
from .iterable import iterable_source
from .rows import TableSource
from .source import ArraySource, Source


def as_source(data: Any, *, length: int | None = None) -> Source:
    """`data` itself if it is a source; arrays by name as ArraySource; a `datasets.Dataset` read where it lies.

    A Dataset keeps its types (int32 stays int32) and its lists of different lengths, which batches pad to their
    longest (or to `length`); encoded pictures are decoded to uint8 [channels, height, width]. An IterableDataset is
    read block by block: see `iterable`.
    raises: DataError for anything else, and for a stream in an order of its own.
    """
    if isinstance(data, Mapping):
        return ArraySource(data)
    if hasattr(data, "_fingerprint") and hasattr(data, "features"):
        return _of_dataset(data, length)
    if isinstance(data, Source):
        return data
    if hasattr(data, "_ex_iterable"):
        return iterable_source(data, length=length)
    advice = "a datasets.Dataset, a dict of arrays, or an object with fingerprint, columns, len and gather"
    raise DataError(f"{type(data).__name__} cannot be loaded; want {advice}")


def _of_dataset(data: Any, length: int | None) -> TableSource:
    names = {name: name for name in data.column_names}
    if not names or not len(data):
        raise DataError("the dataset has no row or no column; want at least one of each")
    files = [file["filename"] for file in data.cache_files]
    chosen = getattr(data, "_indices", None)
    table = getattr(data.data, "table", data.data)
    mark = combined(
        of_files(map(Path, files), names=False) if files else of_buffers(table),
        "" if chosen is None else of_buffers(getattr(chosen, "table", chosen)),
        sorted(names),
        len(data),
        length,
    )
    return TableSource(
        data, np.arange(len(data)), names, fingerprint=mark, length=length, widen=False, ragged=True
    )
