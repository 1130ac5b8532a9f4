"""Integers of 8, 4 or 2 bits in place of float32 values that lie on a grid, with less still where many are zero.

A quantized weight is exactly ``(level - zero point) × scale``. What is stored is ``level - zero point`` modulo 2^bits,
so that a zero weight is the code 0 whatever its channel's zero point: pruned and quantized weights take a bit mask or
gaps (the encodings ``bitmap`` and ``index_gap``, on codes) and then only the codes that are not zero.

Scales and zero points are tensors of the model themselves; they are stored once, as such, and not again here.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from . import bitmap, index_gap
from .encoded import Encoded, flat_cpu, numel_of, occupied, stream_of

WIDTHS = (2, 4, 8)
STREAM_OVERHEAD = 100  # bytes that one more stream costs in the file's header and in artifact.json, about


def encode(tensor: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Encoded | None:
    """`tensor` as integers, in the smallest of three forms; None where a value is not exactly on the grid.

    tensor:     float32 [out, in, …].
    scale:      float32 with as many dims: [out or 1, groups, 1, …]; a group of input features (dim 1) shares one, the
                last group may be shorter.
    zero_point: integers shaped like `scale`, for unsigned levels 0 … 2^bits - 1; None: signed levels around 0.
    cost:       about five passes over the tensor, and a temporary of its size.
    """
    codes = _codes(tensor, scale, zero_point)
    return None if codes is None else _smallest(tensor, *codes, _shared(scale, zero_point))


def size(encoded: Encoded) -> int:
    """Bytes of its streams, with their share of the headers beyond one."""
    return encoded.bytes + STREAM_OVERHEAD * (len(encoded.streams) - 1)


def decode(encoded: Encoded) -> Tensor:
    """The float32 tensor that was encoded, bit for bit. ValueError where streams, grid and shape disagree."""
    shape, settings, grid = encoded.shape, encoded.settings, encoded.shared
    bits, group = settings.get("bits"), settings.get("group")
    if bits not in WIDTHS or not isinstance(group, int) or group < 1 or len(shape) < 2:
        raise ValueError(
            f"bits={bits!r}, group={group!r}, shape={list(shape)} is no grid; want bits 8, 4 or 2"
        )
    if encoded.dtype != torch.float32 or "scale" not in grid:
        raise ValueError("a grid has float32 values and a scale")
    codes = _unfold(encoded.streams, shape, bits, settings)
    scale = _spread(grid["scale"], shape, group)
    if (zero_point := grid.get("zero_point")) is None:
        offsets = codes.view(torch.int8).int() if bits == 8 else _signed(codes, bits)
    else:
        zero = _spread(zero_point, shape, group).int()
        offsets = ((codes.int() + zero) & (2**bits - 1)) - zero
    return offsets.reshape(shape) * scale


def _codes(tensor: Tensor, scale: Tensor, zero_point: Tensor | None) -> tuple[Tensor, int, int] | None:
    """(codes uint8 [numel], bits, group), or None where the tensor is not on the grid."""
    if (
        tensor.dtype != torch.float32
        or scale.dtype != torch.float32
        or tensor.dim() < 2
        or not tensor.numel()
    ):
        return None
    for group in _groups(tensor.shape, scale.shape):
        spread = _spread(scale, tensor.shape, group)
        ratio = (tensor / spread).round_()
        if not bool((ratio.abs() < 2**9).all()):  # not a number either
            continue
        offsets = ratio.int()
        if not _same_bits(offsets * spread, tensor):
            continue
        zero = 0 if zero_point is None else _spread(zero_point, tensor.shape, group).int()
        levels = offsets + zero
        low, high = int(levels.min()), int(levels.max())
        for bits in WIDTHS:
            first = -(2 ** (bits - 1)) if zero_point is None else 0
            if first <= low and high < first + 2**bits:
                return (offsets & (2**bits - 1)).to(torch.uint8).reshape(-1), bits, group
    return None


def _same_bits(left: Tensor, right: Tensor) -> bool:
    # -0.0 equals 0.0 but is another value to every reader that looks at bits
    return torch.equal(left.contiguous().view(torch.int32), right.contiguous().view(torch.int32))


def _groups(shape: torch.Size, scale: torch.Size) -> range:
    """Group sizes with which `scale` could go with a weight of `shape`; empty where it cannot."""
    fits = len(scale) == len(shape) and scale[0] in (1, shape[0]) and all(n == 1 for n in scale[2:])
    features, groups = shape[1], scale[1] if len(scale) > 1 else 0
    if not fits or not 1 <= groups <= features:
        return range(0)
    return range(math.ceil(features / groups), (features - 1) // max(groups - 1, 1) + 1 + (groups == 1))


def _spread(values: Tensor, shape: tuple[int, ...], group: int) -> Tensor:
    """One value for each input feature: [out or 1, in, 1, …]. ValueError where there are too few."""
    features = torch.arange(shape[1]) // group
    if values.dim() != len(shape) or (shape[1] and int(features[-1]) >= values.shape[1]):
        raise ValueError(
            f"a scale of shape {list(values.shape)} does not go with {list(shape)} in groups of {group}"
        )
    return values.cpu().index_select(1, features)


def _smallest(tensor: Tensor, codes: Tensor, bits: int, group: int, shared: dict[str, Tensor]) -> Encoded:
    plain = Encoded(
        encoding="grid",
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        streams={"levels": _pack(codes, bits)},
        settings={"bits": bits, "group": group},
        shared=shared,
    )
    positions = np.flatnonzero(occupied(codes))
    gaps = index_gap.gaps_between(positions)
    gap_bits = index_gap.best_bits(gaps, bits / 8)
    bytes_of = {
        "plain": math.ceil(len(codes) * bits / 8),
        "mask": bitmap.size(len(codes), len(positions), bits / 8) + STREAM_OVERHEAD,
        "gaps": index_gap.size(gaps, gap_bits, bits / 8) + STREAM_OVERHEAD,
    }
    best = min(bytes_of, key=lambda name: bytes_of[name])
    if best == "plain":
        return plain
    found = bitmap.encode(codes) if best == "mask" else index_gap.encode(codes, gap_bits)
    values = found.streams["values"]
    streams = {best: found.streams[best], "levels": _pack(values, bits)}
    more = {"count": len(values), **({"gap_bits": gap_bits} if best == "gaps" else {})}
    return replace(plain, streams=streams, settings={**plain.settings, **more})


def _unfold(
    streams: Mapping[str, Tensor], shape: tuple[int, ...], bits: int, settings: Mapping[str, int]
) -> Tensor:
    """uint8 [shape]: the code of every element."""
    sparse = {"mask", "gaps"} & streams.keys()
    count = settings.get("count", 0) if sparse else numel_of(shape)
    values = _unpack(stream_of(streams, "levels", torch.uint8), bits, count)
    if not sparse:
        return values.reshape(shape)
    own = {**streams, "values": values}
    if "mask" in sparse:
        return bitmap.decode(own, shape, torch.uint8, {})
    return index_gap.decode(own, shape, torch.uint8, {"bits": settings.get("gap_bits", 0)})


def _pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes of `bits` bits, several to a byte, the first in the lowest bits."""
    if bits == 8:
        return flat_cpu(codes)
    each = 8 // bits
    padded = torch.nn.functional.pad(flat_cpu(codes), (0, -codes.numel() % each)).reshape(-1, each)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (padded << shifts).sum(dim=1, dtype=torch.int32).to(torch.uint8)


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `_pack`: `count` codes. ValueError where there are more or fewer."""
    wanted = math.ceil(count * bits / 8) if isinstance(count, int) and count >= 0 else -1
    if packed.numel() != wanted:
        raise ValueError(
            f"the levels have {packed.numel()} bytes; {count} codes of {bits} bits want {wanted}"
        )
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return ((packed[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:count]


def _signed(codes: Tensor, bits: int) -> Tensor:
    """Codes modulo 2^bits as the signed integers that they stand for."""
    half = 2 ** (bits - 1)
    return ((codes.int() + half) & (2**bits - 1)) - half


def _shared(scale: Tensor, zero_point: Tensor | None) -> dict[str, Tensor]:
    found = {"scale": scale} if zero_point is None else {"scale": scale, "zero_point": zero_point}
    return {name: tensor.detach().cpu() for name, tensor in found.items()}
