"""Cutting the rows of a step into micro-batches, the same ones on every mesh."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """The rows of one micro-batch that lie on this data rank."""

    columns: dict[str, Tensor]
    valid: Tensor | None


def _share(rows: int, pieces: int, index: int) -> int:
    """Rows of piece `index` when `rows` are cut as evenly as possible, longer pieces first (numpy.array_split)."""
    return rows // pieces + (index < rows % pieces)


def row_counts(rows: int, microbatches: int, *, global_rows: int | None, rank: int, ranks: int) -> list[int]:
    """How many of this rank's `rows` belong to each micro-batch.

    The global batch is cut into micro-batches first and each of them over the data ranks, so the counts follow
    from `global_rows`. Where that does not give `rows` (padded batches have equal micro-batches) or is not
    known, the rows are cut evenly: gradients are the same sums either way, only the statistics of
    batch normalisation depend on which rows are together.
    """
    if global_rows is not None:
        counts = [_share(_share(global_rows, microbatches, m), ranks, rank) for m in range(microbatches)]
        if sum(counts) == rows:
            return counts
    return [_share(rows, microbatches, m) for m in range(microbatches)]


def cut(columns: Mapping[str, Tensor], valid: Tensor | None, counts: list[int]) -> list[Piece]:
    """One `Piece` of views per micro-batch; columns are micro-batch major: [rows, ...]."""
    parts = {name: column.split(counts) for name, column in columns.items()}
    masks = valid.split(counts) if valid is not None else [None] * len(counts)
    return [Piece({name: parts[name][m] for name in parts}, masks[m]) for m in range(len(counts))]


class InHand:
    """The micro-batch whose forward runs just now, for what looks at activations from inside the model."""

    def __init__(self) -> None:
        self.columns: Mapping[str, Tensor] = {}
        self.valid: Tensor | None = None  # bool [rows], False = a padding row; None = all are real
        self.inputs: Callable[[Mapping[str, Tensor]], Any] = dict  # columns → what the model is called with
        self.seed = (
            1.0  # gradient of the loss from which the backward starts (torch DDP divides by the ranks)
        )
