"""Fingerprints of data: the same in every process and on every machine, another one when the data change."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_WHOLE = 256 << 20  # bytes of a file up to which all of it is read
_BLOCK, _BLOCKS = 1 << 20, 64  # of larger files: that many blocks, evenly spread


def of_arrays(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def of_files(paths: Iterable[Path], *, names: bool = True) -> str:
    """Of names, sizes and contents, in this order; not of folders or times, so that a copied file is the same data.

    names: False leaves them out, for files that a library has named.

    cost: files are read whole up to 256 MiB; of larger ones 64 blocks of 1 MiB, so that a change between the blocks
    that keeps the size is not seen.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name if names else ''} {size};".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                while block := file.read(_BLOCK):
                    digest.update(block)
                continue
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32]


def of_buffers(table: Any) -> str:
    """Of an Arrow table in memory: its types and every byte (1 GB takes about a second)."""
    digest = hashlib.sha256(str(table.schema.remove_metadata()).encode())
    for column in table.columns:
        for chunk in column.chunks:
            digest.update(f"{len(chunk)} {chunk.offset};".encode())
            for buffer in chunk.buffers():
                if buffer is not None:
                    digest.update(memoryview(buffer))
    return digest.hexdigest()[:32]


def combined(*parts: Any) -> str:
    """Of values with a stable text: numbers, texts, and tuples or dicts of them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
