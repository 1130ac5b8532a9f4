"""Encoded pictures into a batch's own memory, without the interpreter lock where simplejpeg is installed."""

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .mapped import Make

Content = bytes | memoryview


def is_images(kind: Any) -> bool:
    """Whether an Arrow type is what Hugging Face `datasets` stores pictures as: struct{bytes, path}."""
    import pyarrow as pa

    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def holds_lock() -> bool:
    """Whether decoding keeps other Python code waiting: Pillow does, simplejpeg does not."""
    return _jpeg() is None


def decode(
    pictures: Sequence[Content | None],
    *,
    name: str,
    rows: Sequence[int] | Sequence[str],
    make: Make,
    like: Tensor | None = None,
    fit: bool = False,
    forms: np.ndarray | None = None,
) -> Tensor:
    """uint8 [pictures, channels, height, width] (channels last in memory) of encoded pictures.

    Grey pictures have one channel, all others become RGB. `like` (one picture's tensor) or else the first picture
    says how many channels all have, and their size.
    forms:  int64 [pictures, 3], see `mapped.Ragged.jpeg_forms`: spares a look at each, and two changes of the
            interpreter's lock.
    fit:    scale pictures of another size until their shorter side fits, and take the middle.
    raises: DataError naming the row for a picture that is missing, damaged or of another size.
    cost:   JPEG of 64 × 64 pixels on one core: simplejpeg 20 µs, Pillow 90 µs.
    """
    out = None if like is None else _room(len(pictures), tuple(like.shape), make)
    places = None if out is None else out.numpy()  # once: a tensor's row costs a fifth of a small picture
    left: Sequence[int] = range(len(pictures))
    if places is not None and forms is not None:
        left = _at_once(pictures, forms, places)
    for number in left:
        content, into = pictures[number], None if places is None else places[number]
        if into is not None and content is not None and _straight(content, into):
            continue
        where = f"column {name!r}, row {rows[number]}"
        if content is None:
            raise DataError(f"{where}: no picture; want its bytes or path in every row: drop such rows")
        pixels = _with_pillow(content, None if into is None else into.shape[2], where)
        if places is None or into is None:
            out = _room(len(pictures), (pixels.shape[2], *pixels.shape[:2]), make)
            places = out.numpy()
            into = places[number]
            if _straight(content, into):  # as all others are decoded: Pillow's values may differ by one
                continue
        if fit and pixels.shape != into.shape:
            pixels = _fitted(pixels, *into.shape[:2])
        if pixels.shape != into.shape:
            raise DataError(
                f"{where}: a picture of {pixels.shape[0]}×{pixels.shape[1]} pixels, others have "
                f"{into.shape[0]}×{into.shape[1]}; resize them to one size first, for example with datasets.map"
            )
        into[:] = pixels
    return torch.empty(0, 1, 1, 1, dtype=torch.uint8) if out is None else out.permute(0, 3, 1, 2)


def _fitted(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    scale = max(height / pixels.shape[0], width / pixels.shape[1])
    tall, wide = max(round(pixels.shape[0] * scale), height), max(round(pixels.shape[1] * scale), width)
    plain = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    scaled = np.asarray(Image.fromarray(plain).resize((wide, tall), Image.Resampling.BICUBIC))
    top, left = (tall - height) // 2, (wide - width) // 2
    return scaled.reshape(tall, wide, -1)[top : top + height, left : left + width]


def _room(count: int, shape: tuple[int, ...], make: Make) -> Tensor:
    """[count, height, width, channels] for pictures of `shape` (channels, height, width)."""
    return make((count, *shape[1:], shape[0]), torch.uint8)


def _at_once(pictures: Sequence[Content | None], forms: np.ndarray, places: np.ndarray) -> list[int]:
    """As `_straight`, of all pictures that `forms` says are such JPEGs; the numbers of those that are left.

    As little Python as can be: between two pictures each thread waits for the interpreter's lock.
    """
    jpeg, (height, width, channels) = _jpeg(), places.shape[1:]
    if jpeg is None:
        return list(range(len(pictures)))
    fit = (forms[:, 0] == height) & (forms[:, 1] == width) & ((forms[:, 2] == 1) | (forms[:, 2] == 3))
    straight, space, left = jpeg.decode_jpeg, "GRAY" if channels == 1 else "RGB", []
    for number, (content, into, fits) in enumerate(zip(pictures, places, fit.tolist(), strict=True)):
        try:
            if fits:
                straight(content, space, buffer=into)
                continue
        except ValueError:
            pass
        left.append(number)
    return left


def _straight(content: Content, into: np.ndarray) -> bool:
    """Whether the picture is now in `into`, uint8 [height, width, channels]: a JPEG of that size, and simplejpeg.

    Anything unusual (another size, four colours, damage) is told or mended by Pillow.
    """
    jpeg = _jpeg()
    if jpeg is None or content[:2] != b"\xff\xd8":
        return False
    try:
        height, width, space, _ = jpeg.decode_jpeg_header(content)
        fits = (height, width) == into.shape[:2] and space in ("Gray", "YCbCr", "RGB")
        if fits:
            jpeg.decode_jpeg(content, "GRAY" if into.shape[2] == 1 else "RGB", buffer=into)
        return fits
    except ValueError:
        return False


def _with_pillow(content: Content, channels: int | None, where: str) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{where}: pictures need Pillow ({error}); run: pip install pillow") from None
    try:
        with Image.open(BytesIO(content)) as image:
            grey = channels == 1 or (channels is None and image.mode in ("1", "L"))
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    # Pillow's own errors are OSErrors, of PNG SyntaxErrors
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: the picture cannot be read ({error}); mend or drop it") from None
    return pixels[:, :, None] if grey else pixels


@cache
def _jpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def contents_of(
    pictures: Sequence[dict[str, Any] | None], *, name: str, rows: Sequence[int]
) -> list[Content | None]:
    """The encoded bytes of {bytes, path} dicts; bytes win, a path is read. raises: DataError naming the row."""
    found: list[Content | None] = []
    for picture, row in zip(pictures, rows, strict=True):
        content, place = (picture or {}).get("bytes"), (picture or {}).get("path")
        if content is None and place:
            try:
                with open(place, "rb") as file:
                    content = file.read()
            except OSError as error:
                raise DataError(
                    f"column {name!r}, row {row}: the picture cannot be read ({error}); mend or drop it"
                ) from None
        found.append(content)
    return found
