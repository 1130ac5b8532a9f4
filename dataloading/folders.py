"""A folder of pictures, one subfolder for each class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .decoding import decode, holds_lock
from .fingerprint import combined, of_files
from .mapped import FRESH, Make
from .source import ColumnInfo
from .split import Split, split_rows

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class FolderSource:
    """Columns inputs (uint8 [3, size, size]) and targets (int64), decoded a batch at a time.

    A picture of another size is made so large that its shorter side fits, and the middle is taken.
    files:  pictures; targets: class of each.
    """

    concurrent = reuses = True

    def __init__(
        self, files: Sequence[Path], targets: Sequence[int], *, size: int, classes: int, fingerprint: str
    ) -> None:
        self._files, self._size = list(files), size
        self._targets = torch.tensor(list(targets), dtype=torch.int64)
        self.classes, self.fingerprint = classes, fingerprint
        self.holds_lock = holds_lock()
        self._like = torch.empty(3, size, size, dtype=torch.uint8)
        self.columns = {"inputs": ColumnInfo.of(self._like[None]), "targets": ColumnInfo.of(self._targets)}

    def __len__(self) -> int:
        return len(self._files)

    def gather(self, rows: np.ndarray, make: Make = FRESH) -> dict[str, Tensor]:
        """inputs and targets of `rows`. DataError naming the file of a picture that cannot be read."""
        contents = [_read(self._files[row]) for row in rows.tolist()]
        names = [str(self._files[row]) for row in rows.tolist()]
        pictures = decode(contents, name="inputs", rows=names, like=self._like, make=make, fit=True)
        return {"inputs": pictures, "targets": self._targets[torch.from_numpy(rows)]}


def folder_source(folder: Path, split: Split, *, size: int, valid_fraction: float = 0.1) -> FolderSource:
    """The pictures of `folder`/CLASS/…, or of `folder`/train/CLASS/… and `folder`/test/CLASS/… (also val).

    raises: DataError for a folder without classes or pictures; ConfigError for a size that is none.
    """
    if type(size) is not int or size < 1:
        raise ConfigError(f"data.source.size={size!r}; want a number of pixels, 1 or more")
    part = next((folder / name for name in _names(split) if (folder / name).is_dir()), None)
    root = part or folder
    classes = sorted(place.name for place in root.iterdir() if place.is_dir())
    found = [
        (file, number)
        for number, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in _ENDINGS
    ]
    if not found:
        raise DataError(
            f"{root} holds no pictures in folders; want FOLDER/CLASS/picture.jpg (or .png, .bmp, .webp)"
        )
    rows = np.arange(len(found)) if part is not None else split_rows(len(found), valid_fraction, split)
    files = [found[row][0] for row in rows]
    mark = combined(of_files(files), classes, size)
    targets = [found[row][1] for row in rows]
    return FolderSource(files, targets, size=size, classes=len(classes), fingerprint=mark)


def _names(split: Split) -> tuple[str, ...]:
    return ("train",) if split == "train" else ("test", "val", "valid", "validation")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
