"""Files in the idx format, in which MNIST and its like come.

source: yann.lecun.com/exdb/mnist: two zero bytes, type, number of dimensions, sizes (big endian, 4 bytes), values.
"""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from ..errors import DataError
from .source import ArraySource
from .split import Split

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PREFIX = {"train": "train", "test": "t10k"}


def idx_source(folder: str | Path, split: Split) -> ArraySource:
    """Columns inputs (uint8 [1, height, width] for images) and targets (int64) of `folder`'s train or t10k files.

    raises: DataError for a missing or damaged file, or when images and labels differ in number.
    """
    images_file = _find(Path(folder), f"{_PREFIX[split]}-images", 3)
    labels_file = _find(Path(folder), f"{_PREFIX[split]}-labels", 1)
    images, labels = read_idx(images_file), read_idx(labels_file)
    if len(images) != len(labels):
        raise DataError(
            f"{images_file} has {len(images)} rows and {labels_file} has {len(labels)}; want equally many: "
            "take both files from the same place"
        )
    return ArraySource({"inputs": images[:, None], "targets": labels.astype(np.int64)})


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file, raw or gzipped, in native byte order. DataError when it is missing or damaged."""
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise DataError(
            f"{path} begins with {content[:4].hex(' ') or 'nothing'}; want 00 00, a type and a number of dimensions: "
            "it is not an idx file, get it again"
        )
    kind, header = np.dtype(_TYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < header:
        raise DataError(f"{path}: want a header of {header} bytes, found {len(content)}; get the file again")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    expected = header + prod(shape) * kind.itemsize
    if len(content) != expected:
        raise DataError(
            f"{path}: its header promises {expected} bytes ({'×'.join(map(str, shape))} values), found {len(content)} "
            "(unpacked); the file is cut off or damaged, get it again"
        )
    return np.frombuffer(content, kind, offset=header).reshape(shape).astype(kind.newbyteorder("="))


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    names = [f"{stem}{joint}idx{dimensions}-ubyte{end}" for end in ("", ".gz") for joint in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder} has no {names[0]} (nor .gz); want a folder with the idx files of MNIST's form: put them there or "
        "change data.source.idx"
    )


def _content(path: Path) -> bytes:
    """All bytes, unpacked. What a cut-off gzip file still holds is given, for the caller to count."""
    try:
        with path.open("rb") as file:
            if path.suffix != ".gz":
                return file.read()
            pieces = []
            try:
                with gzip.open(file) as unpacked:
                    while piece := unpacked.read1(1 << 20):  # read would lose what comes before the cut
                        pieces.append(piece)
            except EOFError:
                pass
            return b"".join(pieces)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: found a damaged gzip stream of {path.stat().st_size} bytes ({error}); "
            "get the file again"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
