"""MNIST, or numbers of its shape where it is not there: as idx files, and as tensors that are ready for a model."""

import os
from pathlib import Path

import numpy as np
import torch
from forgepress.dataloading import load_source
from torch import Tensor

TRANSFORM = {"scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}


def mnist_folder(scratch: str | Path) -> Path:
    """The folder with MNIST's idx files: $FORGEPRESS_DATA/mnist, else 60,000 random images written to ``scratch``."""
    folder = Path(os.environ.get("FORGEPRESS_DATA", "../shared/data")) / "mnist"
    if (folder / "train-images-idx3-ubyte.gz").is_file():
        return folder
    folder = Path(scratch)
    generator = np.random.default_rng(0)
    for part, rows in (("train", 60_000), ("t10k", 10_000)):
        images = generator.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, rows, dtype=np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / name).write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    return folder


def mnist(scratch: str | Path, *, flatten: bool) -> tuple[Tensor, Tensor]:
    """Normalised training images [60000, 784] (or [60000, 1, 28, 28]), and their classes [60000]."""
    spec = {"source": {"idx": str(mnist_folder(scratch))}, "transform": {**TRANSFORM, "flatten": flatten}}
    columns = load_source(spec, "train").gather(np.arange(60_000))
    return columns["inputs"], columns["targets"].to(torch.long)
