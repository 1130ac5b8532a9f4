"""scikit-learn's handwritten digits: 1,797 real images of 8×8 that need no download."""

import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..errors import DataError
from .source import ArraySource
from .split import Split, split_rows

_TESTED = 0.2  # share of rows for testing


def digits_source(split: Split) -> ArraySource:
    """Columns inputs (float32 [1, 8, 8], 0 to 1) and targets (int64, 0 to 9); a fixed fifth is for testing.

    raises: DataError when scikit-learn is not installed.
    source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI.
    """
    images, targets = _digits()
    rows = split_rows(len(images), _TESTED, split)
    inputs = (images[rows] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return ArraySource({"inputs": inputs, "targets": targets[rows].astype(np.int64)})


@functools.cache  # the rows to train on and those to test on are of one reading
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images float64 [1797, 64] from 0 to 16, and what they show [1797].

    Read from scikit-learn's own file where it lies where it has always lain: importing scikit-learn for it takes a
    second, several times what a short run on these images does.
    """
    spec = find_spec("sklearn")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"data.source=digits needs scikit-learn ({error}); run: pip install 'forgepress[examples]'"
        ) from None
    images, targets = load_digits(return_X_y=True)
    return np.asarray(images), np.asarray(targets)
