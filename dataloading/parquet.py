"""Many Parquet files as rows by number, without a copy of them: row groups are read when their rows are asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .blocks import BlockSource
from .fingerprint import combined, of_files


class ParquetSource(BlockSource):
    """Rows of Parquet files end to end, read a row group at a time. Made for `shuffle=N`, which shuffles row groups.

    files:   in the order in which their rows count.
    names:   column of the files → name here; empty: all, as they are called.
    groups:  decoded row groups that are kept at a time; at least the N of `shuffle=N`, a few more for threads.
    length, widen: see `Columns`.
    raises:  DataError for unreadable files, or files whose columns differ.
    cost:    the files' footers are read at once; a row group is decoded about once an epoch with shuffle=N, and for
             every batch anew with shuffle=True.
    """

    def __init__(
        self,
        files: Sequence[Path | str],
        names: Mapping[str, str] | None = None,
        *,
        groups: int = 16,
        length: int | None = None,
        widen: bool = True,
    ) -> None:
        self._files = [Path(file) for file in files]
        footers = [_footer(file) for file in self._files]
        schema = footers[0].schema.to_arrow_schema()
        names = dict(names or {name: name for name in schema.names})
        for file, footer in zip(self._files, footers, strict=True):
            _check_columns(file, footer.schema.to_arrow_schema(), schema, names, self._files[0])
        self._groups = [
            (file, group) for file, footer in enumerate(footers) for group in range(footer.num_row_groups)
        ]
        sizes = [
            footer.row_group(group).num_rows for footer in footers for group in range(footer.num_row_groups)
        ]
        if not sum(sizes):
            raise DataError(f"{self._files[0]}: no rows; want at least one")
        self._wanted, self._given = names, {"groups": groups, "length": length, "widen": widen}
        self.fingerprint = combined(of_files(self._files), names, length)
        self._open(np.array(sizes), names, kept=groups, length=length, widen=widen)

    def __reduce__(self) -> Any:
        return _again, (self._files, self._wanted, self._given)

    def _table(self, number: int) -> Any:
        import pyarrow.parquet as parquet

        file, group = self._groups[number]
        path = self._files[file]
        try:
            with parquet.ParquetFile(path) as opened:
                return opened.read_row_group(group, columns=list(self._wanted), use_threads=False)
        except (OSError, ValueError) as error:  # Arrow's own errors are these
            raise DataError(
                f"{path}, row group {group}, cannot be read ({error}); get the file again"
            ) from error


def _footer(file: Path) -> Any:
    import pyarrow.parquet as parquet

    try:
        return parquet.read_metadata(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet ({error}); want undamaged files") from error


def _check_columns(file: Path, found: Any, first: Any, names: Mapping[str, str], reference: Path) -> None:
    if missing := [name for name in names if name not in found.names]:
        raise DataError(f"{file}: no column {', '.join(missing)}; it has {', '.join(found.names)}")
    for name in names:
        if found.field(name).type != first.field(name).type:
            raise DataError(
                f"{file}: column {name!r} is {found.field(name).type}, in {reference} it is {first.field(name).type}; "
                "want one type in all files"
            )


def _again(files: list[Path], names: dict[str, str], given: dict[str, Any]) -> ParquetSource:
    return ParquetSource(files, names, **given)
