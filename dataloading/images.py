"""Encoded pictures as tensors."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError


def is_images(kind: Any) -> bool:
    """Whether an Arrow type is what Hugging Face `datasets` stores pictures as: struct{bytes, path}."""
    import pyarrow as pa

    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def decode(
    pictures: Sequence[dict[str, Any]], *, name: str, rows: Sequence[int], like: Tensor | None = None
) -> Tensor:
    """uint8 [pictures, channels, height, width] of {bytes, path} dicts; bytes win, a path is read.

    Grey pictures have one channel, all others become RGB. `like` (one picture's tensor) or else the first picture
    says how many channels all have, and their size.
    raises: DataError naming the row for a picture that is missing, damaged or of another size.
    cost:   Pillow, about 90 µs for 64×64 on one core.
    """
    decoded: Any = None if like is None else np.empty((len(pictures), *like.shape), np.uint8)
    for number, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
        pixels = _pixels(
            picture, None if decoded is None else decoded.shape[1], f"column {name!r}, row {row}"
        )
        if decoded is None:
            decoded = np.empty((len(pictures), *pixels.shape), np.uint8)
        if pixels.shape != decoded.shape[1:]:
            raise DataError(
                f"column {name!r}, row {row}: a picture of {pixels.shape[1]}×{pixels.shape[2]} pixels, others have "
                f"{decoded.shape[2]}×{decoded.shape[3]}; resize them to one size first, for example with datasets.map"
            )
        decoded[number] = pixels
    return torch.from_numpy(np.empty((0, 1, 1, 1), np.uint8) if decoded is None else decoded)


def _pixels(picture: dict[str, Any] | None, channels: int | None, where: str) -> np.ndarray:
    """uint8 [channels, height, width]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{where}: pictures need Pillow ({error}); run: pip install pillow") from None

    given = picture or {}
    content, place = given.get("bytes"), given.get("path")
    if content is None and not place:
        raise DataError(f"{where}: no picture; want its bytes or path in every row: drop such rows")
    try:
        with Image.open(BytesIO(content) if content is not None else str(place)) as image:
            grey = channels == 1 or (channels is None and image.mode in ("1", "L"))
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (
        OSError,
        SyntaxError,
        ValueError,
    ) as error:  # Pillow's own errors are OSErrors, of PNG SyntaxErrors
        raise DataError(f"{where}: the picture cannot be read ({error}); mend or drop it") from None
    return pixels[None] if grey else pixels.transpose(2, 0, 1)
