"""The columns of an Arrow table as tensors, whole batches at a time: each read in the quickest way its type allows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .arrow import to_tensor
from .decoding import contents_of, decode, is_images
from .mapped import FRESH, Fixed, Make, Ragged, fixed, ragged


class Columns:
    """Reads rows of an Arrow table: numbers straight from the mapped file, pictures decoded into the batch.

    table:  pyarrow Table; names: its column → name in batches.
    length: of texts in bytes and of lists in values: longer ones are cut, shorter ones filled up with 0.
    widen:  integers become int64 (uint8 stays) and floating point float32, as models take them; else types stay.
    ragged: lists of different lengths without `length` are padded to the longest of a batch.
    likes:  what is known of pictures beforehand: name → one picture's tensor.
    """

    def __init__(
        self,
        table: Any,
        names: Mapping[str, str],
        *,
        length: int | None = None,
        widen: bool = True,
        ragged: bool = False,
        likes: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._table, self._names, self._length, self._widen = table, dict(names), length, widen
        self._likes = dict(likes or {})
        self._readers = {new: self._reader(table.column(old), ragged) for old, new in names.items()}
        kinds = {new: table.schema.field(old).type for old, new in names.items()}
        self.pictures = [name for name, kind in kinds.items() if is_images(kind)]
        """Names of the columns that hold encoded pictures."""
        first_ragged = [
            new
            for new, reader in self._readers.items()
            if isinstance(reader, Ragged) and new not in self.pictures
        ]
        self.ragged = first_ragged[0] if first_ragged and length is None else None
        """The column whose rows have lengths of their own; None where there is none."""
        self.varied = [new for new in first_ragged if self.ragged and self._is_like(new, self.ragged)]
        """That column and all others whose rows have the same lengths, such as a mask beside tokens."""

    @property
    def lengths(self) -> np.ndarray:
        """Values in every row of the column `ragged`, int64 [rows of the table]."""
        reader = self._readers[self.ragged or ""]
        assert isinstance(reader, Ragged)
        return reader.lengths

    def gather(
        self,
        rows: np.ndarray,
        make: Make = FRESH,
        *,
        width: int | None = None,
        shown: np.ndarray | None = None,
    ) -> dict[str, Tensor]:
        """Name → [len(rows), …] in what `make` gives.

        width: of lists of different lengths (else the longest of these rows).   shown: row numbers for messages.
        raises: DataError for missing values and values that make no tensor, naming column and row.
        """
        said = rows if shown is None else shown
        return {new: self._column(old, new, rows, make, width, said) for old, new in self._names.items()}

    def runs(
        self, rows: np.ndarray, first: np.ndarray, lengths: np.ndarray, places: np.ndarray, out: Tensor
    ) -> None:
        """Values of the column `ragged`: see `mapped.Ragged.runs`."""
        reader = self._readers[self.ragged or ""]
        assert isinstance(reader, Ragged)
        reader.runs(rows, first, lengths, places, out)

    @property
    def token_type(self) -> torch.dtype:
        """Type of the values of the column `ragged`."""
        return self._readers[self.ragged or ""].dtype  # type: ignore[union-attr]

    def _reader(self, column: Any, padded: bool) -> Fixed | Ragged | None:
        if is_images(column.type):
            import pyarrow as pa

            contents = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], pa.binary())
            return None if any(chunk.null_count for chunk in column.chunks) else ragged(contents)
        return fixed(column) or (ragged(column) if padded or self._length is not None else None)

    def _column(
        self, old: str, new: str, rows: np.ndarray, make: Make, width: int | None, shown: np.ndarray
    ) -> Tensor:
        reader = self._readers[new]
        if new in self.pictures:
            return self._decoded(old, new, rows, make, shown)
        if isinstance(reader, Fixed):
            return self._wide(new, reader.gather(rows, make), make)
        if isinstance(reader, Ragged) and (reader.dtype != torch.uint8 or self._is_list(old)):
            wide = self._length or width or int(reader.lengths[rows].max(initial=0))
            return self._wide(new, reader.padded(rows, wide, 0, make), make)
        if isinstance(reader, Ragged) and self._length is not None:
            return _text(reader, rows, self._length, make)
        chosen = self._table.column(old).take(rows)
        tensor = to_tensor(new, chosen, length=self._length)
        return tensor.long() if new == "targets" and not tensor.is_floating_point() else tensor

    def _decoded(self, old: str, new: str, rows: np.ndarray, make: Make, shown: np.ndarray) -> Tensor:
        reader, numbers = self._readers[new], shown.tolist()
        forms = None
        if isinstance(reader, Ragged):
            contents: Any = reader.bytes_of(rows)
            forms = reader.jpeg_forms(rows)
        else:
            taken = self._table.column(old).take(rows).to_pylist()
            contents = contents_of(taken, name=new, rows=numbers)
        return decode(contents, name=new, rows=numbers, like=self._likes.get(new), make=make, forms=forms)

    def _is_like(self, new: str, other: str) -> bool:
        one, two = self._readers[new], self._readers[other]
        assert isinstance(one, Ragged) and isinstance(two, Ragged)
        return new == other or np.array_equal(one.lengths, two.lengths)

    def _is_list(self, old: str) -> bool:
        return "list" in str(self._table.schema.field(old).type)

    def _wide(self, new: str, tensor: Tensor, make: Make) -> Tensor:
        kind = tensor.dtype
        if self._widen and kind == torch.float64:
            wanted = torch.float32
        elif (self._widen and kind in (torch.int8, torch.int16, torch.int32)) or (
            new == "targets" and not kind.is_floating_point
        ):
            wanted = torch.int64
        else:
            return tensor
        return tensor if kind == wanted else make(tuple(tensor.shape), wanted).copy_(tensor)


def _text(reader: Ragged, rows: np.ndarray, length: int, make: Make) -> Tensor:
    """int64 [rows, length]: UTF-8 byte + 1, cut, filled up with 0."""
    content = reader.padded(rows, length, 0, FRESH)
    tokens = make((len(rows), length), torch.int64).copy_(content).add_(1)
    ends = torch.from_numpy(reader.lengths[rows])[:, None]
    return tokens.masked_fill_(torch.arange(length) >= ends, 0)


def check_shape(name: str, found: Sequence[int], wanted: tuple[int, ...], rows: np.ndarray) -> None:
    """raises: DataError where a batch's rows have another shape than row 0."""
    if found != wanted:  # torch's sizes are tuples too
        raise DataError(
            f"column {name!r}: rows {rows[:3].tolist()}… have shape {tuple(found)}, the first row has {wanted}; "
            "want one shape: pad or cut first, for example with datasets.map"
        )
