"""Tables that Hugging Face `datasets` reads: parquet, json, csv, lines of text, and its own Arrow folders."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from .cache import CachedSource, bytes_of
from .fingerprint import combined, of_files
from .quiet import quiet
from .rows import TableSource
from .source import ArraySource, Source
from .split import Split, split_rows
from .tokens import Tokenizer

FORMATS = ("parquet", "json", "csv", "lines", "arrow")
KEPT_BYTES = 1 << 30  # tables up to this size are held in memory as tensors


def table_source(
    kind: str,
    files: dict[str, list[Path]],
    split: Split,
    *,
    inputs: str | None = None,
    targets: str | None = None,
    length: int | None = None,
    tokenizer: Tokenizer | None = None,
    separator: str | None = None,
    valid_fraction: float = 0.1,
    ragged: bool = False,
) -> Source:
    """The rows of table files as tensors.

    kind:    one of FORMATS; arrow: one folder that `Dataset.save_to_disk` wrote.
    files:   {"train": …, "test": …}, or {"all": …}: `valid_fraction` of the rows, chosen by number, are for testing.
    inputs, targets: columns that get these names; if any is given, others are left out.
    length:  of text columns, in bytes: see `arrow.to_tensor`. Pictures become uint8 [channels, height, width].
    tokenizer: makes the text column `inputs` the columns input_ids and attention_mask.
    ragged:  lists of different lengths, and tokens, keep their lengths: for bucketing and packing.
    separator: of csv; tab for files named .tsv, else comma. Between tabs, quotes are plain characters.
    raises:  DataError for unreadable files, unknown columns, and values that make no tensor.
    cost:    `datasets` keeps an Arrow copy of parquet, json, csv and lines in its cache folder. Tables whose
             tensors take up to 1 GiB stay in memory: numbers from the start, pictures once decoded.
    """
    part = split if split in files else "all"
    if part not in files:
        raise DataError(f"data.source.{kind} names no files for {split}; add some: {kind}: {{{split}: GLOB}}")
    table, is_split = _read(kind, files[part], split, separator)
    rows = (
        np.arange(len(table)) if part != "all" or is_split else split_rows(len(table), valid_fraction, split)
    )
    if not len(rows):
        raise DataError(f"{_names(files[part])}: no rows for {split}; want at least one")
    names = _names_of_columns(table.column_names, inputs, targets, _names(files[part]))
    contents = of_files(_contents(kind, files[part]))
    mark = combined(contents, split, len(rows), valid_fraction, names, length)
    vocabulary = None
    if tokenizer is not None:
        if inputs is None:
            raise ConfigError("data.source.tokenizer needs data.inputs, the column with the text")
        made = tokenizer.tokenize(table.select_columns(list(names)), inputs, split, contents, ragged=ragged)
        kept = {old: new for old, new in names.items() if old != inputs}
        table, names, vocabulary = (
            made.table,
            {**{name: name for name in made.columns}, **kept},
            made.vocabulary,
        )
        mark = combined(mark, made.fingerprint)
    source = TableSource(
        table, rows, names, length=length, vocabulary=vocabulary, fingerprint=mark, ragged=ragged
    )
    if ragged:
        source.row_length = int(source.lengths.max())  # raises where no column has lengths
        return source
    if bytes_of(source.columns, len(source)) > KEPT_BYTES:
        return source
    if source.has_images:
        return CachedSource(source)
    return ArraySource(
        source.gather(np.arange(len(source))),
        fingerprint=mark,
        vocabulary=source.vocabulary,
        classes=source.classes,
    )


def _read(kind: str, files: list[Path], split: Split, separator: str | None) -> tuple[Any, bool]:
    """The dataset, and whether it is this split already."""
    import datasets

    paths: list[Any] = [str(file) for file in files]
    try:
        with quiet():
            if kind == "arrow":
                return _from_disk(datasets.load_from_disk(paths[0]), split, paths[0])
            if kind == "csv":
                return datasets.Dataset.from_csv(paths, **_csv_form(files, separator)), False
            reader = getattr(datasets.Dataset, f"from_{'text' if kind == 'lines' else kind}")
            return reader(paths), False
    except DataError:
        raise
    except Exception as error:  # every reader raises its own kinds: pandas', Arrow's, the operating system's
        reason = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{_names(files)} cannot be read as {kind} ({reason[0]}); want undamaged {kind} files of one form"
        ) from error


def _csv_form(files: Sequence[Path], separator: str | None) -> dict[str, Any]:
    is_tabbed = all(file.name.removesuffix(".gz").endswith(".tsv") for file in files)
    separator = separator or ("\t" if is_tabbed else ",")
    return {"sep": separator, "quoting": csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL}


def _from_disk(loaded: Any, split: Split, folder: str) -> tuple[Any, bool]:
    if not isinstance(loaded, dict):
        return loaded, False
    for name in (split,) if split == "train" else ("test", "validation", "valid"):
        if name in loaded:
            return loaded[name], True
    raise DataError(f"{folder} has the splits {', '.join(loaded)}; want one named {split}")


def _contents(kind: str, files: list[Path]) -> list[Path]:
    return sorted(files[0].rglob("*.arrow")) if kind == "arrow" else files


def _names_of_columns(
    have: Sequence[str], inputs: str | None, targets: str | None, where: str
) -> dict[str, str]:
    """Column → its name in batches."""
    wanted = {old: new for old, new in ((inputs, "inputs"), (targets, "targets")) if old is not None}
    if missing := [name for name in wanted if name not in have]:
        raise DataError(f"{where}: no column {', '.join(missing)}; it has {', '.join(have)}")
    if inputs is not None and inputs == targets:
        raise ConfigError(f"data.inputs and data.targets are both {inputs!r}; want two columns")
    return wanted or {name: name for name in have}


def _names(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
