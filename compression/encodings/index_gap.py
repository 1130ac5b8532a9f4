"""The distance from each kept weight to the next in a few bits, then the values: best with many zeros.

A code of `bits` bits says how many zeros come before the value. Where more than 2**bits - 1 zeros come, a
filler entry (the highest code and the value zero) covers 2**bits positions. Zeros after the last value need
nothing.

source: Han et al. 2015, Deep Compression, arXiv:1510.00149, section 2 and figure 2.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .encoded import Encoded, flat_cpu, numel_of, occupied, scatter, stream_of, take

WIDTHS = range(1, 17)  # bits per code that are tried; beyond 16 a bitmap of all-zero stretches costs no more
_BLOCK = 1 << 20  # codes packed at a time (a multiple of 8): bounds the temporary to 16 MiB


def gaps_between(positions: np.ndarray) -> np.ndarray:
    """int64 [values]: how many zeros lie before each kept position. `positions` ascends."""
    return np.diff(positions, prepend=-1) - 1


def size(gaps: np.ndarray, bits: int, element_size: float) -> int:
    """Bytes that `encode` takes with codes of `bits` bits, fillers included."""
    entries = len(gaps) + int((gaps >> bits).sum())
    return (entries * bits + 7) // 8 + math.ceil(entries * element_size)


def best_bits(gaps: np.ndarray, element_size: float) -> int:
    """The code width that gives the fewest bytes (the smaller on a tie). cost: 16 passes over `gaps`."""
    return min(WIDTHS, key=lambda bits: size(gaps, bits, element_size))


def encode(tensor: Tensor, bits: int | None = None) -> Encoded:
    """`tensor`, of any shape and dtype, as `gaps` (uint8, lowest bit first) and `values` (its dtype).

    bits: width of a code, 1 to 16; None takes the best.
    raises: ValueError for another width.
    """
    if bits is not None and bits not in WIDTHS:
        raise ValueError(
            f"bits={bits}: a gap code has {WIDTHS.start} to {WIDTHS.stop - 1} bits; None takes the best"
        )
    flat = flat_cpu(tensor)
    positions = np.flatnonzero(occupied(flat))
    gaps = gaps_between(positions)
    bits = bits or best_bits(gaps, flat.element_size())
    fillers = gaps >> bits
    places = np.cumsum(fillers + 1) - 1  # entry number of each real value
    entries = int(places[-1]) + 1 if len(places) else 0
    codes = np.full(entries, (1 << bits) - 1, dtype=np.uint16)  # all are fillers until a value is written
    codes[places] = gaps & ((1 << bits) - 1)
    values = scatter(take(flat, positions), places, entries)
    return Encoded(
        encoding="index_gap",
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        streams={"gaps": torch.from_numpy(_pack(codes, bits)), "values": values},
        settings={"bits": bits},
    )


def decode(
    streams: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype, settings: Mapping[str, int]
) -> Tensor:
    """The tensor that `encode` was given, bit for bit. ValueError where the streams do not fit `shape`."""
    numel, bits = numel_of(shape), settings.get("bits")
    if not isinstance(bits, int) or bits not in WIDTHS:
        raise ValueError(f"bits={bits!r}: a gap code has {WIDTHS.start} to {WIDTHS.stop - 1} bits")
    values = stream_of(streams, "values", dtype)
    packed = stream_of(streams, "gaps", torch.uint8)
    wanted = (values.numel() * bits + 7) // 8
    if packed.numel() != wanted:
        raise ValueError(
            f"the gaps have {packed.numel()} bytes; {values.numel()} codes of {bits} bits want {wanted}"
        )
    positions = np.cumsum(_unpack(packed.numpy(), bits, values.numel()).astype(np.int64) + 1) - 1
    if len(positions) and positions[-1] >= numel:
        raise ValueError(f"the gaps lead to element {positions[-1]}, but the shape {list(shape)} has {numel}")
    return scatter(values, positions, numel).reshape(shape)


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint16 codes to uint8: code after code, each lowest bit first."""
    shifts = np.arange(bits, dtype=np.uint16)
    blocks = (codes[start : start + _BLOCK] for start in range(0, len(codes), _BLOCK))
    packed = [
        np.packbits(((block[:, None] >> shifts) & 1).astype(np.uint8), bitorder="little") for block in blocks
    ]
    return np.concatenate(packed) if packed else np.zeros(0, dtype=np.uint8)


def _unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `_pack`: `count` codes as uint16."""
    codes = np.empty(count, dtype=np.uint16)
    weights = (1 << np.arange(bits)).astype(np.uint16)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        octets = packed[
            start * bits // 8 : (stop * bits + 7) // 8
        ]  # exact: blocks begin at multiples of 8 codes
        block = np.unpackbits(octets, count=(stop - start) * bits, bitorder="little").reshape(-1, bits)
        codes[start:stop] = block.astype(np.uint16) @ weights
    return codes
