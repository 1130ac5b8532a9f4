"""Tensors to bytes and back, bit for bit: one file per encoding, plain functions on tensors.

``choose`` takes the smallest, ``decode`` reads whichever was taken. What lies on
disk is described in docs/artifact.md.
"""

from .encoded import Encoded, positive_zeros
from .selection import choose, decode, dtype_name, dtype_named, encode, sizes

__all__ = ["Encoded", "choose", "decode", "dtype_name", "dtype_named", "encode", "positive_zeros", "sizes"]
