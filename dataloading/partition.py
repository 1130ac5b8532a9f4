"""How a global batch is dealt out: first into micro-batches, then over the data ranks."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One rank's rows of a global batch, micro-batch major."""

    positions: np.ndarray
    """Positions in the global batch, int64 [rows]."""
    valid: Tensor | None
    """bool [rows], False for a padding row; None when all are real."""


def cut(rows: int, pieces: int) -> list[tuple[int, int]]:
    """(begin, end) of `pieces` consecutive pieces of `rows` rows; sizes differ by one at most, larger ones first."""
    size, larger = divmod(rows, pieces)
    ends = [size * number + min(number, larger) for number in range(pieces + 1)]
    return list(pairwise(ends))


@lru_cache(maxsize=64)
def part_of(rows: int, *, microbatches: int, ranks: int, rank: int, sizes: tuple[int, ...] = ()) -> Part:
    """Rank `rank`'s part of a global batch of `rows` rows.

    Micro-batch m over all ranks is the same set of rows whatever `ranks` is.
    sizes: rows of each micro-batch on this rank after padding; () pads nothing. A padding row is a copy of a real
           row: the rank's last one of that micro-batch, or the micro-batch's or batch's first where the rank has none.
    """
    positions, valid = [], []
    for number, (begin, end) in enumerate(cut(rows, microbatches)):
        low, high = (begin + edge for edge in cut(end - begin, ranks)[rank])
        extra = max(sizes[number] - (high - low), 0) if sizes else 0
        copied = high - 1 if high > low else begin if end > begin else 0
        positions.append(np.concatenate([np.arange(low, high), np.full(extra, copied)]))
        valid.append(np.arange(high - low + extra) < high - low)
    is_real = np.concatenate(valid)
    return Part(
        np.concatenate(positions).astype(np.int64),
        None if is_real.all() else torch.from_numpy(is_real),
    )


def full_sizes(batch: int, *, microbatches: int, ranks: int, rank: int, equal: bool) -> tuple[int, ...]:
    """Rows of each micro-batch of a full global batch on this rank; `equal`: what the largest part of any rank has."""
    if equal:
        return (-(-batch // (microbatches * ranks)),) * microbatches
    pieces = [cut(end - begin, ranks)[rank] for begin, end in cut(batch, microbatches)]
    return tuple(high - low for low, high in pieces)
