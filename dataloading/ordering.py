"""Which order a loader's settings ask for."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from .concat import ConcatSource
from .lengths import BucketOrder, Buckets
from .mixing import MixedOrder
from .order import BlockOrder, Order, RowOrder
from .packing import PackedOrder, Packing
from .source import Source


def make_order(
    data: Any,
    opened: Callable[[Any], Source],
    *,
    seed: int,
    shuffle: bool | int,
    weights: Sequence[float] | None,
    buckets: Buckets | None,
    pack: Packing | None,
    batch: int,
) -> tuple[Source, Order]:
    """The source (several as one) and the order of its rows. raises: ConfigError for settings that exclude others.

    opened: makes a source of each thing that the user gave.
    """
    if buckets is not None and pack is not None:
        raise ConfigError(
            "data: buckets and pack are both given; packed rows have one length already: leave one out"
        )
    if isinstance(data, list | tuple):
        parts = [opened(one) for one in data]
        source: Any = ConcatSource(parts)
    else:
        source = opened(data)
        parts = list(getattr(source, "parts", [source]))
        weights = weights or getattr(source, "weights", None)
    if weights is None:
        order: Order = _of_one(source, seed, shuffle)
    else:
        orders = [_of_one(part, seed + number, shuffle) for number, part in enumerate(parts)]
        starts = np.cumsum([0, *(len(part) for part in parts)])[:-1].tolist()
        order = MixedOrder(orders, starts, weights)
    if buckets is not None:
        order = BucketOrder(order, _lengths(source, "buckets"), buckets.sized(batch), seed=seed)
    if pack is not None:
        order = PackedOrder(order, _lengths(source, "pack"), pack)
    return source, order


def _of_one(source: Any, seed: int, shuffle: bool | int) -> Order:
    if isinstance(shuffle, bool):
        return RowOrder(len(source), seed=seed, shuffle=shuffle)
    edges = getattr(source, "blocks", None)
    if edges is None:
        edges = np.append(np.arange(0, len(source), 1024), len(source))
    return BlockOrder(edges, seed=seed, window=shuffle)


def _lengths(source: Any, word: str) -> np.ndarray:
    if getattr(source, "ragged", None) is None:
        raise ConfigError(
            f"data: {word} needs rows of different lengths; the columns {', '.join(source.columns)} have one each"
        )
    return source.lengths
