"""Random numbers that belong to rows: a function of (seed, epoch, row), so equal on every mesh and after a resume."""

import numpy as np
import torch
from torch import Tensor

from .split import mixed


class Draws:
    """Draws for the rows of one batch. Every call gives new numbers, in the order of calls."""

    def __init__(self, rows: np.ndarray, *, seed: int, epoch: "int | np.ndarray") -> None:
        """rows: int64 [B] in the source.   epoch: of all rows or of each, int64 [B]."""
        key = mixed(np.array([seed], np.uint64))
        key = mixed(key ^ mixed(np.atleast_1d(np.asarray(epoch)).astype(np.uint64)))
        self._bits = mixed(key ^ mixed(rows.astype(np.uint64)))
        self._calls = 0

    def bits(self) -> np.ndarray:
        """uint64 [B]; the first call's are those of earlier versions."""
        if self._calls:
            self._bits = mixed(self._bits)
        self._calls += 1
        return self._bits

    def uniform(self) -> Tensor:
        """float32 [B] from 0 to less than 1."""
        return torch.from_numpy((self.bits() >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))

    def integers(self, low: int, high: int) -> Tensor:
        """int64 [B] from `low` to `high` - 1."""
        spread = np.uint64(high - low)
        drawn = ((self.bits() >> np.uint64(32)) * spread) >> np.uint64(32)
        return torch.from_numpy(drawn.astype(np.int64) + low)
