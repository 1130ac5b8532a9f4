"""scikit-learn's handwritten digits: 1,797 real images of 8×8 that need no download."""

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
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"data.source=digits needs scikit-learn ({error}); run: pip install 'forgepress[examples]'"
        ) from None
    images, targets = load_digits(return_X_y=True)
    rows = split_rows(len(images), _TESTED, split)
    inputs = (images[rows] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return ArraySource({"inputs": inputs, "targets": targets[rows].astype(np.int64)})
