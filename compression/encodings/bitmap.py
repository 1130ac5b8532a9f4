"""One bit per weight, then the values that are not zero: best between roughly 5 % and 95 % zeros.

source: the bit mask layout of sparse accelerators, for example Gondimalla et al. 2019, SparTen (MICRO).
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .encoded import Encoded, flat_cpu, numel_of, occupied, scatter, stream_of, take


def size(numel: int, nonzero: int, element_size: float) -> int:
    """Bytes that `encode` takes for `nonzero` of `numel` elements of `element_size` bytes."""
    return (numel + 7) // 8 + math.ceil(nonzero * element_size)


def encode(tensor: Tensor) -> Encoded:
    """`tensor`, of any shape and dtype, as `mask` (uint8, lowest bit first) and `values` (its dtype).

    cost: one pass and a temporary of one byte per element.
    """
    flat = flat_cpu(tensor)
    kept = occupied(flat)
    mask = torch.from_numpy(np.packbits(kept, bitorder="little"))
    values = take(flat, np.flatnonzero(kept))
    return Encoded(
        encoding="bitmap",
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        streams={"mask": mask, "values": values},
    )


def decode(
    streams: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype, settings: Mapping[str, int]
) -> Tensor:
    """The tensor that `encode` was given, bit for bit. ValueError where the streams do not fit `shape`."""
    numel = numel_of(shape)
    mask = stream_of(streams, "mask", torch.uint8)
    values = stream_of(streams, "values", dtype)
    if mask.numel() != (numel + 7) // 8:
        raise ValueError(f"the mask has {mask.numel()} bytes; {numel} elements want {(numel + 7) // 8}")
    bits = np.unpackbits(mask.numpy(), bitorder="little")
    if bits[numel:].any():
        raise ValueError(f"the mask has bits set after its {numel} elements")
    positions = np.flatnonzero(bits[:numel])
    if len(positions) != values.numel():
        raise ValueError(f"the mask marks {len(positions)} elements, but there are {values.numel()} values")
    return scatter(values, positions, numel).reshape(shape)
