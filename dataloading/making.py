"""From row numbers to batches: read, transform, stage. What every thread of a loader does."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .augment import Augment
from .batch import Batch
from .buffers import Buffers
from .draws import Draws
from .marks import mark_documents
from .meter import Meter
from .packing import PackedOrder, Pieces
from .plan import Group, Position
from .source import Source

Columns = dict[str, Tensor]
BatchFunction = Callable[..., Columns]
"""columns → columns of one batch; one that takes a second argument gets `Draws` for the batch's rows."""


class Made(NamedTuple):
    """A batch and the position after it."""

    batch: Batch
    after: Position


@dataclass(kw_only=True)
class Maker:
    """Makes the batches of a group. Called by several threads where the source allows it; travels to a process."""

    source: Source
    seed: int
    meter: Meter
    augment: Augment | None = None
    transform: BatchFunction | None = None
    packed: PackedOrder | None = None
    pinned: bool = False

    @cached_property
    def buffers(self) -> Buffers:
        """Memory that batches are made in."""
        return Buffers(pinned=self.pinned)

    @cached_property
    def draws(self) -> bool:
        """Whether the transform wants random numbers."""
        return self.transform is not None and takes_draws(self.transform)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "buffers"}

    def __call__(self, group: Group) -> list[Made]:
        """The group's batches, read in one go."""
        sizes = [len(rows) for rows in group.rows]
        rows = group.rows[0] if len(sizes) == 1 else np.concatenate(group.rows)
        with self.meter.stage("read"):
            columns = self._read(group, rows)
        if self.augment is not None or self.transform is not None:
            with self.meter.stage("transform"):
                columns = self._changed(group, rows, sizes, columns)
        self.meter.add(
            batches=len(sizes), rows=len(rows), bytes=sum(tensor.nbytes for tensor in columns.values())
        )
        numbers = torch.from_numpy(rows)
        if len(sizes) == 1:
            pieces, own = [columns], [numbers]
        else:
            split = [tensor.split(sizes) for tensor in columns.values()]
            pieces = [dict(zip(columns, tensors, strict=True)) for tensors in zip(*split, strict=True)]
            own = numbers.split(sizes)
        made = zip(pieces, group.parts, group.real, own, group.positions[1:], strict=True)
        first = group.positions[0].index
        return [
            Made(Batch(piece, part.valid, real, group.epoch, first + at, its), after)
            for at, (piece, part, real, its, after) in enumerate(made)
        ]

    def _read(self, group: Group, rows: np.ndarray) -> Columns:
        if self.packed is not None:
            return self._unpacked(self.packed.pieces(group.epoch, rows), len(rows), self.packed)
        given: dict[str, Any] = {}
        if group.widths:
            given["width"] = group.widths[0]
        if getattr(self.source, "reuses", False):
            given["make"] = self.buffers
        columns = self.source.gather(rows, **given)
        if not self.pinned:
            return columns
        return {name: self._in_place(tensor) for name, tensor in columns.items()}

    def _in_place(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.is_pinned() else self.buffers(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def _unpacked(self, pieces: Pieces, count: int, packed: PackedOrder) -> Columns:
        """Tokens with their document in the row and their position in the document."""
        source: Any = self.source
        length, shape = packed.packing.length, (count, packed.packing.length)
        tokens = self.buffers(shape, source.token_type)
        document = self.buffers(shape, torch.int32)
        position = self.buffers(shape, torch.int32)
        places = pieces.rows * length + pieces.places
        source.runs(pieces.documents, pieces.first, pieces.lengths, places, tokens.view(-1))
        mark_documents(pieces, packed.packing.padding, tokens, document, position)
        return {source.ragged: tokens, "document": document, "position": position}

    def _changed(self, group: Group, rows: np.ndarray, sizes: list[int], columns: Columns) -> Columns:
        epoch = np.concatenate(group.passes) if group.passes else group.epoch
        if self.augment is not None:
            if "inputs" not in columns:
                raise DataError(f"data.augment changes the column inputs; the data have {', '.join(columns)}")
            pictures = self.augment(columns["inputs"], rows, seed=self.seed, epoch=epoch)
            columns = {**columns, "inputs": pictures}
        if self.transform is not None:
            more = (Draws(rows, seed=self.seed, epoch=epoch),) if self.draws else ()
            columns = self.transform(columns, *more)
            check_columns(columns, len(rows))
        return columns


def check_columns(columns: Any, rows: int) -> None:
    """raises: DataError where a user's function gave something else than a dict of tensors with `rows` rows."""
    if not isinstance(columns, dict) or not all(isinstance(tensor, Tensor) for tensor in columns.values()):
        raise DataError(
            f"the transform gave {type(columns).__name__}; want a dict of tensors [rows, …] as it was given"
        )
    wrong = {name: len(tensor) for name, tensor in columns.items() if len(tensor) != rows}
    if wrong:
        raise DataError(f"the transform gave rows {wrong} for a batch of {rows}; want one for each row")


def takes_draws(function: BatchFunction) -> bool:
    """Whether a function of a batch wants a second argument. raises: ConfigError for one that does not say."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError as error:  # a builtin without a signature
        raise ConfigError(f"transform={function!r}: {error}; want a plain function of a batch") from None
    return True
