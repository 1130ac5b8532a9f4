"""What every encoding gives: named streams plus what is needed to read them again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One tensor as streams: contiguous CPU tensors. `settings` are integers that the decoder needs."""

    encoding: str  # name in selection.ENCODINGS
    shape: tuple[int, ...]
    dtype: torch.dtype
    streams: dict[str, Tensor]
    settings: dict[str, int] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(
        default_factory=dict
    )  # what the decoder needs and another tensor's entry stores

    @property
    def bytes(self) -> int:
        """Bytes of all streams together; file headers, and what is shared, are not counted."""
        return sum(stream.numel() * stream.element_size() for stream in self.streams.values())


def flat_cpu(tensor: Tensor) -> Tensor:
    """`tensor` as a contiguous one-dimensional CPU tensor without gradient; copies only where it must."""
    return tensor.detach().cpu().contiguous().reshape(-1)


def occupied(flat: Tensor) -> np.ndarray:
    """bool [numel]: True where any bit is set.

    Bits decide, not values, so that -0.0 and every NaN payload come back as they were.
    """
    if flat.numel() == 0:
        return np.zeros(0, dtype=bool)
    size = flat.element_size()
    octets = flat.view(torch.uint8).numpy()
    if size in (1, 2, 4, 8):
        return octets.view(f"u{size}").astype(bool)
    return octets.reshape(-1, size).max(axis=1) > 0  # complex128: no integer type is that wide


def take(flat: Tensor, positions: np.ndarray) -> Tensor:
    """The elements of `flat` at `positions`, in its dtype; copies bytes, so any dtype will do."""
    octets = flat.view(torch.uint8).numpy().reshape(-1, flat.element_size())
    return torch.from_numpy(np.ascontiguousarray(octets[positions]).reshape(-1)).view(flat.dtype)


def scatter(values: Tensor, positions: np.ndarray, numel: int) -> Tensor:
    """A flat tensor of `numel` zeros (all bits clear) with `values` written at `positions`."""
    octets = np.zeros((numel, values.element_size()), dtype=np.uint8)
    octets[positions] = values.contiguous().view(torch.uint8).numpy().reshape(-1, values.element_size())
    return torch.from_numpy(octets.reshape(-1)).view(values.dtype)


def stream_of(streams: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    """The stream `name`, one-dimensional and of `dtype`; ValueError where it is missing or another."""
    stream = streams.get(name)
    if stream is None:
        raise ValueError(f"the stream {name!r} is missing; there are: {', '.join(sorted(streams)) or 'none'}")
    if stream.dtype != dtype or stream.dim() != 1:
        raise ValueError(
            f"the stream {name!r} is {stream.dtype} with {stream.dim()} dims; want {dtype} with 1"
        )
    return stream


def positive_zeros(tensor: Tensor) -> Tensor:
    """`tensor` with every -0.0 written as 0.0, all other bits untouched.

    A mask times a negative weight is -0.0: equal to zero, but a set bit, which the encodings keep as a value.
    Without this, half of the zeros of a pruned layer would be stored. What is given back computes the same.
    """
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        return tensor
    return torch.where(tensor == 0, torch.zeros((), dtype=tensor.dtype, device=tensor.device), tensor)


def numel_of(shape: tuple[int, ...]) -> int:
    """How many elements a tensor of `shape` has; ValueError for a negative length."""
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {list(shape)} has a negative length")
    return math.prod(shape)
