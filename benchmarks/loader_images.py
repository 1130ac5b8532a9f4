"""How many JPEG pictures of 64 pixels does the loader decode in a second, against other loaders?

20,000 pictures of noise and gradients (about 1.8 kB each) in Arrow files as `datasets` writes them, batches of 64,
shuffled, uint8 out, files in the page cache, two threads or workers at most. "same decoder": `datasets` gives bytes,
which simplejpeg decodes in the worker; otherwise `datasets` decodes with Pillow. Limit: simplejpeg in one thread,
straight into the batch, from bytes in memory. Warm: all pictures kept decoded, against np.take from one array.
"""

import argparse
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from forgepress.benchmarks import _loader_peers as peers
from forgepress.benchmarks import _result
from forgepress.benchmarks._loaders import Way, compared, measure, ours
from forgepress.dataloading import Cache, Loader
from PIL import Image

ROWS, SIDE, BATCH = 20_000, 64, 64


def main() -> None:
    """Measure and write results/loader_images.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        data, encoded, decoded = pictures(Path(folder), options.rows)
        cold = measure(decoding(data, encoded, Path(folder)), seconds=options.seconds, rounds=options.rounds)
        warm = measure(kept(data, decoded), seconds=options.seconds, rounds=options.rounds)
    rows = compared(cold, "forgepress", "simplejpeg, one thread")
    rows += compared(warm, "forgepress, all kept", "np.take of decoded pictures")
    question = f"How fast are {options.rows:,} JPEG pictures of {SIDE} pixels loaded?"
    _result.write(__file__, question, rows, every_round=cold.rounds | warm.rounds, left_out=cold.left_out)


def pictures(folder: Path, count: int) -> tuple[Any, list[bytes], np.ndarray]:
    """The dataset, its encoded pictures and the decoded ones."""
    import simplejpeg

    generator, slope = np.random.default_rng(0), np.linspace(0, 200, SIDE)
    encoded = []
    for _ in range(count):
        coarse = generator.integers(0, 56, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
        pixels = (coarse + slope[:, None, None] * generator.random(3)).astype(np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=90)
        encoded.append(file.getvalue())
    decoded = np.stack([simplejpeg.decode_jpeg(content, "RGB") for content in encoded])
    columns = {"image": [{"bytes": content, "path": None} for content in encoded], "label": [0] * count}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / "arrow"))
    return datasets.load_from_disk(str(folder / "arrow")), encoded, decoded


def decoding(data: Any, encoded: list[bytes], folder: Path) -> dict[str, Way]:
    """Every picture is decoded whenever it is asked for."""
    shards = peers.Written(folder, "jpeg", encoded)
    raw = data.cast_column("image", datasets.Image(decode=False)).with_transform(_decoded)
    pillow = data.with_format("torch")
    return {
        "forgepress": ours(lambda: Loader(data, batch=BATCH, prefetch=4, threads=2)),
        "forgepress, one thread": ours(lambda: Loader(data, batch=BATCH, prefetch=4, threads=1)),
        "simplejpeg, one thread": lambda: _limit(encoded),
        **{f"DataLoader, {n} workers, Pillow": peers.torch_loader(pillow, BATCH, n) for n in (0, 1, 2)},
        **{f"DataLoader, {n} workers, same decoder": peers.torch_loader(raw, BATCH, n) for n in (0, 1, 2)},
        "StatefulDataLoader, 2 workers, same decoder": peers.torch_loader(raw, BATCH, 2, stateful=True),
        "grain, 2 threads, same decoder": peers.grain(_Pictures(encoded), BATCH, 2),
        "SPDL, 2 threads, same decoder": peers.spdl(
            lambda at: np.stack([_pixels(encoded[row]) for row in at]), len(encoded), BATCH, 2
        ),
        **{
            f"{library}, {n} workers, same decoder": shards.way(library, BATCH, n)
            for library in peers.LIBRARIES
            for n in (0, 2)
        },
    }


def kept(data: Any, decoded: np.ndarray) -> dict[str, Way]:
    """Every picture was decoded before."""

    def warm() -> Iterator[int]:
        with Loader(data, batch=BATCH, prefetch=4, threads=2, cache=Cache(memory=1 << 30)) as loader:
            for _ in loader:  # the first epoch decodes
                pass
            for batch in loader.stream():
                yield batch.global_rows

    return {"forgepress, all kept": warm, "np.take of decoded pictures": lambda: _take(decoded)}


class _Pictures:
    """Decoded pictures by number."""

    def __init__(self, encoded: list[bytes]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, row: int) -> np.ndarray:
        return _pixels(self._encoded[row])


def _pixels(content: bytes) -> np.ndarray:
    import simplejpeg

    return simplejpeg.decode_jpeg(content, "RGB")


def _decoded(rows: dict[str, list[Any]]) -> dict[str, Any]:
    images = [torch.from_numpy(_pixels(picture["bytes"])) for picture in rows["image"]]
    return {"image": images, "label": rows["label"]}


def _limit(encoded: list[bytes]) -> Iterator[int]:
    import simplejpeg

    out = np.empty((BATCH, SIDE, SIDE, 3), np.uint8)
    while True:
        order = np.random.permutation(len(encoded))
        for at in range(0, len(encoded) - BATCH + 1, BATCH):
            for place, row in enumerate(order[at : at + BATCH].tolist()):
                simplejpeg.decode_jpeg(encoded[row], "RGB", buffer=out[place])
            yield BATCH


def _take(decoded: np.ndarray) -> Iterator[int]:
    out = np.empty((BATCH, *decoded.shape[1:]), np.uint8)
    while True:
        order = np.random.permutation(len(decoded))
        for at in range(0, len(decoded) - BATCH + 1, BATCH):
            np.take(decoded, order[at : at + BATCH], axis=0, out=out, mode="clip")
            yield BATCH


if __name__ == "__main__":
    main()
