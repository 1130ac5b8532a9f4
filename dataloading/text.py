"""A text file as rows of tokens, each row to be continued by one token at every position."""

import gzip
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .fingerprint import combined, of_arrays
from .source import ArraySource, ColumnInfo, Source
from .split import Split

WIDE_BYTES = 1 << 30  # tokens are held as int64, ready to be copied, while they fit in here


def text_source(
    files: dict[str, Path],
    split: Split,
    *,
    length: int,
    tokens: Literal["characters", "bytes"] = "characters",
    valid_fraction: float = 0.1,
) -> Source:
    """Columns inputs and targets, int64 [length]; targets are inputs one token later. Also `vocabulary`.

    files:  {"all": FILE}: the last `valid_fraction` of its tokens is for testing; or {"train": FILE, "test": FILE}.
            UTF-8, plain or .gz. Characters are numbered in code point order over all files given, whatever the split.
    Row r starts at token r · length; the last, incomplete row is left out.
    raises: DataError for an unreadable file, text that is not UTF-8, or too little text for one row.
    cost:   8 bytes of memory a token up to 1 GiB, then 1 (4 with more than 256 characters).
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ConfigError(f"data.source.length={length!r}; want the number of tokens in a row, 1 or more")
    if tokens not in ("characters", "bytes"):
        raise ConfigError(f"data.source.tokens={tokens!r}; want characters or bytes")
    numbers, vocabulary = _encode({name: _read(path) for name, path in files.items()}, files, tokens)
    if "all" in numbers:
        whole = numbers["all"]
        at = int(len(whole) * (1 - valid_fraction))
        numbers = {"train": whole[:at], "test": whole[at:]}
    if split not in numbers:
        raise DataError(f"data.source.text names no file for {split}; add one: text: {{{split}: FILE}}")
    chosen = torch.from_numpy(np.ascontiguousarray(numbers[split]))
    rows = (len(chosen) - 1) // length
    if rows < 1:
        raise DataError(
            f"{', '.join(map(str, files.values()))}: {len(chosen)} tokens for {split}, want at least {length + 1} "
            f"for one row of length {length}; give more text or a smaller length"
        )
    mark = combined(of_arrays({"tokens": chosen}), vocabulary, length)
    if len(chosen) * 8 > WIDE_BYTES:
        return WindowSource(chosen, length, fingerprint=mark, vocabulary=vocabulary)
    chosen = chosen.to(torch.int64)
    windows = {
        "inputs": chosen[: rows * length].view(rows, length),
        "targets": chosen[1 : rows * length + 1].view(rows, length),
    }
    return ArraySource(windows, fingerprint=mark, vocabulary=vocabulary)


class WindowSource:
    """Rows of `length` consecutive tokens from narrow integers, widened as they are gathered."""

    resident = True
    concurrent = True

    def __init__(self, tokens: Tensor, length: int, *, fingerprint: str, vocabulary: tuple[str, ...]) -> None:
        self._rows = (len(tokens) - 1) // length
        self._inputs = tokens[: self._rows * length].view(self._rows, length)
        self._targets = tokens[1 : self._rows * length + 1].view(self._rows, length)
        self.fingerprint, self.vocabulary = fingerprint, vocabulary
        info = ColumnInfo(torch.int64, (length,))
        self.columns = {"inputs": info, "targets": info}

    def __len__(self) -> int:
        return self._rows

    def gather(self, rows: np.ndarray) -> dict[str, Tensor]:
        """inputs and targets, int64 [len(rows), length]."""
        index = torch.from_numpy(rows)
        return {
            "inputs": self._inputs.index_select(0, index).to(torch.int64),
            "targets": self._targets.index_select(0, index).to(torch.int64),
        }


def _encode(
    contents: dict[str, bytes], files: dict[str, Path], tokens: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    if tokens == "bytes":
        return {name: np.frombuffer(content, np.uint8).copy() for name, content in contents.items()}, tuple(
            chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>" for byte in range(256)
        )
    points = {
        name: np.frombuffer(_decode(content, files[name]).encode("utf-32-le"), np.uint32)
        for name, content in contents.items()
    }
    seen = np.zeros(0x110000, dtype=bool)
    for codes in points.values():
        seen[codes] = True
    known = np.flatnonzero(seen)
    number = np.zeros(0x110000, dtype=np.uint8 if len(known) <= 256 else np.int32)
    number[known] = np.arange(len(known))
    return {name: number[codes] for name, codes in points.items()}, tuple(map(chr, known))


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {error.start}; convert it, or use tokens: bytes"
        ) from None


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); get it again") from None
    except OSError as error:
        raise DataError(f"data.source.text: {path} cannot be read: {error.strerror}") from None
