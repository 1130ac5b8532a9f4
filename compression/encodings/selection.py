"""Which encoding is the smallest for a tensor, and the way back."""

import numpy as np
import torch
from torch import Tensor

from . import bitmap, grid, index_gap, raw
from .encoded import Encoded, flat_cpu, occupied
from .grid import STREAM_OVERHEAD

ENCODINGS = {"raw": raw, "bitmap": bitmap, "index_gap": index_gap}


def sizes(tensor: Tensor) -> dict[str, int]:
    """Bytes per encoding with its share of the headers, without encoding. cost: a few passes over it."""
    flat = flat_cpu(tensor)
    positions = np.flatnonzero(occupied(flat))
    gaps, width = index_gap.gaps_between(positions), flat.element_size()
    return {
        "raw": flat.numel() * width,
        "bitmap": bitmap.size(flat.numel(), len(positions), width) + STREAM_OVERHEAD,
        "index_gap": index_gap.size(gaps, index_gap.best_bits(gaps, width), width) + STREAM_OVERHEAD,
    }


def choose(tensor: Tensor, scale: Tensor | None = None, zero_point: Tensor | None = None) -> Encoded:
    """`tensor` in its smallest encoding, the simpler one on a tie. Exact for every shape, dtype and bits.

    scale, zero_point: the grid that the tensor may lie on, as `grid.encode` takes it.
    """
    found = sizes(tensor)
    name = min(found, key=lambda name: found[name])
    on_grid = None if scale is None else grid.encode(tensor, scale, zero_point)
    if on_grid is not None and grid.size(on_grid) + STREAM_OVERHEAD < found[name]:
        return on_grid
    return encode(tensor, name)


def encode(tensor: Tensor, encoding: str) -> Encoded:
    """`tensor` in the named encoding, which needs no grid. ValueError for an unknown name."""
    return _module(encoding).encode(tensor)


def decode(encoded: Encoded) -> Tensor:
    """The tensor that was encoded, bit for bit, on the CPU. ValueError where streams and shape disagree."""
    if encoded.encoding == "grid":
        return grid.decode(encoded)
    return _module(encoded.encoding).decode(encoded.streams, encoded.shape, encoded.dtype, encoded.settings)


def _module(encoding: str):
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding {encoding!r} is unknown; known: {', '.join(ENCODINGS)}, grid")
    return ENCODINGS[encoding]


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype of a name such as "bfloat16". ValueError for anything else."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype {name!r} is unknown to torch {torch.__version__}")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """The name that `dtype_named` reads."""
    return str(dtype).removeprefix("torch.")
