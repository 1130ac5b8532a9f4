"""Pictures moved and mirrored at random, alike on every mesh and after every resume."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .draws import Draws


@dataclass(frozen=True, kw_only=True)
class Augment:
    """A window of the picture's own size out of the picture with `crop` more pixels (0) all around, maybe mirrored.

    What happens to a row is a function of (seed, epoch, row number) alone. For training only.
    cost: one copy of each picture; 128 of 3 × 32 × 32 in float32 take about 1 ms, in the thread that reads ahead.
    """

    crop: int = 0
    """Pixels that the window may move in each direction."""
    flip: bool = False
    """Mirror left and right every second time."""

    @classmethod
    def from_words(cls, words: Mapping[str, Any]) -> "Augment":
        """From config words. raises: ConfigError for an unknown word or a wrong value."""
        known = [field.name for field in fields(cls)]
        if unknown := [str(word) for word in words if word not in known]:
            raise ConfigError(f"data.augment: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**words)

    def __post_init__(self) -> None:
        if type(self.crop) is not int or self.crop < 0:
            raise ConfigError(f"data.augment.crop={self.crop!r}; want a number of pixels, 0 or more")
        if not isinstance(self.flip, bool):
            raise ConfigError(f"data.augment.flip={self.flip!r}; want true or false")

    def __call__(self, pictures: Tensor, rows: np.ndarray, *, seed: int, epoch: int | np.ndarray) -> Tensor:
        """[B, C, H, W] of the source's `rows` (int64 [B]) → the same shape and type, new memory.

        epoch: of all rows or of each, int64 [B].

        raises: DataError for rows that are no pictures.
        """
        if pictures.dim() != 4:
            raise DataError(
                f"data.augment on inputs of shape {list(pictures.shape[1:])}; want pictures [channels, height, width]: "
                "leave out transform.flatten (models flatten by themselves), or data.augment"
            )
        bits = Draws(rows, seed=seed, epoch=epoch).bits()
        places = 2 * self.crop + 1
        down = ((bits & np.uint64(0xFFFF)) * np.uint64(places)) >> np.uint64(16)
        right = (((bits >> np.uint64(16)) & np.uint64(0xFFFF)) * np.uint64(places)) >> np.uint64(16)
        mirrored = (bits >> np.uint64(63)).astype(bool) & self.flip
        return _windows(pictures, self.crop, down.astype(int), right.astype(int), mirrored)


def _windows(
    pictures: Tensor, crop: int, down: np.ndarray, right: np.ndarray, mirrored: np.ndarray
) -> Tensor:
    """Window b begins at (down[b], right[b]) of picture b with `crop` pixels of 0 around it."""
    height, width = pictures.shape[2:]
    padded = np.pad(pictures.numpy(), ((0, 0), (0, 0), (crop, crop), (crop, crop)))
    windows = np.empty(pictures.shape, padded.dtype)
    for number, (row, column) in enumerate(zip(down, right, strict=True)):
        window = padded[number, :, row : row + height, column : column + width]
        windows[number] = window[:, :, ::-1] if mirrored[number] else window
    return torch.from_numpy(windows)
