"""Pictures moved and mirrored at random, alike on every mesh and after every resume."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, DataError
from .draws import Draws


@dataclass(frozen=True, kw_only=True)
class Augment:
    """A window of the picture's own size out of the picture with `crop` more pixels (0) all around, maybe mirrored.

    With `area` a random part of the picture, scaled to its size (bilinear), comes first ("random resized crop").
    What happens to a row is a function of (seed, epoch, row number) alone. For training only.
    source: Szegedy et al. 2015, Going deeper with convolutions, section 6 (area and ratio).
    cost: one copy of each picture; 128 of 3 × 32 × 32 in float32 take about 1 ms, in the thread that reads ahead, with
          `area` about 5 ms.
    """

    crop: int = 0
    """Pixels that the window may move in each direction."""
    flip: bool = False
    """Mirror left and right every second time."""
    area: tuple[float, float] | None = None
    """Least and greatest share of the picture that is kept, drawn evenly, such as (0.08, 1)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width of that part by its height, both in shares of the picture's; drawn by its logarithm."""

    @classmethod
    def from_words(cls, words: Mapping[str, Any]) -> "Augment":
        """From config words. raises: ConfigError for an unknown word or a wrong value."""
        known = [field.name for field in fields(cls)]
        if unknown := [str(word) for word in words if word not in known]:
            raise ConfigError(f"data.augment: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        ranges = {
            word: tuple(words[word])
            for word in ("area", "ratio")
            if isinstance(words.get(word), list | tuple)
        }
        return cls(**{**words, **ranges})

    def __post_init__(self) -> None:
        for word, most in (("area", 1.0), ("ratio", float("inf"))):
            value = getattr(self, word)
            if value is not None and not _is_range(value, most):
                wanted = "two shares from more than 0 to 1" if word == "area" else "two positive numbers"
                raise ConfigError(f"data.augment.{word}={value!r}; want {wanted}, the smaller first")
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
        draws = Draws(rows, seed=seed, epoch=epoch)
        bits = draws.bits()
        if self.area is not None:
            pictures = _scaled(pictures, _parts(draws, self.area, self.ratio))
        places = 2 * self.crop + 1
        down = ((bits & np.uint64(0xFFFF)) * np.uint64(places)) >> np.uint64(16)
        right = (((bits >> np.uint64(16)) & np.uint64(0xFFFF)) * np.uint64(places)) >> np.uint64(16)
        mirrored = (bits >> np.uint64(63)).astype(bool) & self.flip
        return _windows(pictures, self.crop, down.astype(int), right.astype(int), mirrored)


def _is_range(value: Any, most: float) -> bool:
    plain = isinstance(value, tuple) and len(value) == 2 and all(type(one) in (int, float) for one in value)
    return plain and 0 < value[0] <= value[1] <= most


def _parts(draws: Draws, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Random parts of pictures: left, top, width, height in shares of the picture, float32 [4, B]."""
    kept = area[0] + (area[1] - area[0]) * draws.uniform()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * draws.uniform())
    width, height = torch.sqrt(kept * shape).clamp_(max=1), torch.sqrt(kept / shape).clamp_(max=1)
    return torch.stack([(1 - width) * draws.uniform(), (1 - height) * draws.uniform(), width, height])


def _scaled(pictures: Tensor, parts: Tensor) -> Tensor:
    """Each picture's part [4, B] (shares, see `_parts`) at the picture's size, bilinear; [B, C, H, W] → the same."""
    height, width = pictures.shape[2:]
    left, top, wide, tall = parts[:, :, None]
    # Centres of pixels, elementwise: a matrix product could differ by the last bit with the size of the batch.
    across = (left + wide * ((torch.arange(width) + 0.5) / width)) * 2 - 1
    down = (top + tall * ((torch.arange(height) + 0.5) / height)) * 2 - 1
    grid = torch.stack(
        [across[:, None, :].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], -1
    )
    found = F.grid_sample(
        pictures.float().contiguous(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return found if pictures.is_floating_point() else found.round_().to(pictures.dtype)


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
