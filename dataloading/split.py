"""Which rows are for training and which for testing, when the data do not say."""

from typing import Literal

import numpy as np

from ..errors import ConfigError, DataError

Split = Literal["train", "test"]


def check_split(split: str) -> Split:
    """`split` itself; ConfigError unless it is train or test."""
    if split not in ("train", "test"):
        raise ConfigError(f"split {split!r} is not known; want train or test")
    return split


def check_fraction(value: object) -> float:
    """`value` as the share of rows for testing; ConfigError unless 0 <= value < 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"valid_fraction={value!r}; want a number from 0 to less than 1, such as 0.1")
    return float(value)


def split_rows(rows: int, valid_fraction: float, split: Split) -> np.ndarray:
    """Row numbers (int64, ascending) of one part of `rows` rows; about `valid_fraction` of them are for testing.

    A row's part depends on its number alone, so that rows added at the end move no other row.
    raises: DataError when the part is empty.
    """
    number = np.arange(rows, dtype=np.uint64)
    tested = mixed(number) < np.uint64(valid_fraction * 2**64)
    chosen = np.flatnonzero(tested if split == "test" else ~tested)
    if not len(chosen):
        raise DataError(
            f"valid_fraction={valid_fraction} of {rows} rows leaves none for {split}; change the fraction "
            "or name files for train and test"
        )
    return chosen


def mixed(number: np.ndarray) -> np.ndarray:
    """Evenly spread 64-bit hashes. source: Steele et al. 2014, SplittableRandom's finalizer (splitmix64)."""
    bits = (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
