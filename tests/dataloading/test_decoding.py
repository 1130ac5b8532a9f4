"""Pictures of every kind in one column: decoded alike whether or not their form is read ahead."""

from io import BytesIO

import numpy as np
import pytest
import torch
from forgepress.dataloading import native
from forgepress.dataloading.decoding import decode
from forgepress.dataloading.mapped import FRESH, Ragged

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
if native.library() is None:
    pytest.skip("no C compiler here", allow_module_level=True)

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
HEIGHT, WIDTH = PIXELS.shape[:2]


def encoded(mode: str = "RGB", kind: str = "JPEG", pixels: np.ndarray = PIXELS, **settings: object) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format=kind, **settings)
    return file.getvalue()


KINDS = {
    "plain": encoded(),
    "progressive": encoded(progressive=True),
    "fine colours": encoded(subsampling=0, quality=95),
    "grey": encoded("L"),
    "four colours": encoded("CMYK"),
    "with a note before it": encoded(comment=b"\xff\xc0 looks like a frame" * 20),
    "PNG": encoded(kind="PNG"),
}
ODD = {
    "cut": KINDS["plain"][:60],
    "no picture": b"\xff\xd8\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    "empty": b"",
}


def column(contents: list[bytes]) -> Ragged:
    whole = torch.frombuffer(bytearray(b"".join(contents) + b"\0"), dtype=torch.uint8)
    offsets = np.cumsum([0, *map(len, contents)]).astype(np.int64)
    return Ragged([(whole.data_ptr(), offsets)], torch.uint8, whole)


def test_the_form_is_what_the_file_says_and_zeros_where_it_says_nothing():
    contents = [*KINDS.values(), *ODD.values()]
    forms = column(contents).jpeg_forms(np.arange(len(contents)))
    said = dict(zip([*KINDS, *ODD], forms.tolist(), strict=True))
    colours = {"grey": 1, "four colours": 4}
    for name in KINDS:
        wanted = [0, 0, 0] if name == "PNG" else [HEIGHT, WIDTH, colours.get(name, 3)]
        assert said[name] == wanted, name
    assert all(said[name] == [0, 0, 0] for name in ODD)


@pytest.mark.parametrize("channels", [1, 3])
def test_with_and_without_the_form_the_pixels_are_the_same(channels: int):
    rows = np.array([0, 3, 1, 5, 4, 6, 2, 0])
    held, like = column(list(KINDS.values())), torch.empty(channels, HEIGHT, WIDTH, dtype=torch.uint8)
    given = {"name": "image", "rows": rows.tolist(), "make": FRESH, "like": like}
    ahead = decode(held.bytes_of(rows), **given, forms=held.jpeg_forms(rows))
    alone = decode(held.bytes_of(rows), **given)
    assert ahead.shape == (len(rows), channels, HEIGHT, WIDTH) and torch.equal(ahead, alone)


def test_a_row_that_is_not_there_is_an_error():
    with pytest.raises(IndexError, match="row 7 of 7"):
        column(list(KINDS.values())).jpeg_forms(np.array([0, 7]))
