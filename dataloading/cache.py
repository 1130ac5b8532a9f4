"""Rows that are costly to make are made once: kept in memory, which the ranks of a node may share, and on disk."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .fingerprint import combined
from .mapped import FRESH, Make, take_rows
from .meter import Meter
from .node import node_memory
from .source import ColumnInfo, Source
from .split import mixed

_ALIGNED = 64


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What is kept of what the deterministic part of a loader makes (decoding, `prepare`). No batch depends on it."""

    memory: int = 0
    """Bytes in memory. A row is kept or not by its number alone, and never thrown out: where a share s of the rows
    fits, a full shuffle finds exactly that share there."""
    policy: Literal["kept", "recent"] = "kept"
    """recent: the rows used last instead, for orders that use some rows much more often than others."""
    shared: bool = False
    """One memory for all processes of this node that load the same data."""
    folder: str | None = None
    """Rows are made once for all runs and written here, as Arrow files with checksums."""
    disk: int = 1 << 34
    """Bytes in `folder`, at most."""

    def __post_init__(self) -> None:
        for word in ("memory", "disk"):
            if type(getattr(self, word)) is not int or getattr(self, word) < 0:
                raise ConfigError(
                    f"data.cache.{word}={getattr(self, word)!r}; want a number of bytes, 0 or more"
                )
        if self.policy not in ("kept", "recent"):
            raise ConfigError(f"data.cache.policy={self.policy!r}; want kept or recent")
        if self.policy == "recent" and self.shared:
            raise ConfigError("data.cache: policy=recent is kept by each process; leave out shared")


class CachedSource:
    """`source` with rows kept in memory as they were first given. Cached or not, a row has the same bits.

    budget: bytes; None keeps every row.   shared: with all processes of this node, under this text.
    The memory is reserved at once and filled as rows are asked for (the system gives it at first writing).
    """

    reuses = True

    def __init__(
        self,
        source: Source,
        *,
        budget: int | None = None,
        shared: str | None = None,
        meter: Meter | None = None,
    ) -> None:
        if getattr(source, "ragged", None):
            raise ConfigError(
                "data.cache: rows of different lengths cannot be kept; give them one length, or leave the cache out"
            )
        self._source, self._meter = source, meter
        self._given = {"budget": budget, "shared": shared, "meter": meter}
        self.columns: Mapping[str, ColumnInfo] = source.columns
        rows, width = len(source), bytes_of(source.columns, 1)
        self.share = 1.0 if budget is None else min(budget / max(rows * width, 1), 1.0)
        """Of the rows that are kept."""
        self._kept_rows = _chosen(rows, self.share)
        count = rows if self._kept_rows is None else len(self._kept_rows)
        self._flags, self._kept = _arena(source, count, shared)
        self.concurrent = getattr(source, "concurrent", False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __reduce__(self) -> Any:
        return _again, (self._source, self._given)

    @property
    def fingerprint(self) -> str:
        """The source's."""
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, rows: np.ndarray, make: Make | None = None) -> dict[str, Tensor]:
        """Column → [len(rows), …]; only rows that are not kept yet are read from the source."""
        places = self._places(rows)
        found = (places >= 0) & (self._flags[places] == 1)
        hits = int(np.count_nonzero(found))
        if self._meter is not None:
            self._meter.add(hits=hits, misses=len(rows) - hits)
        if len(rows) and hits == len(rows):
            return {
                name: take_rows(kept, places, (make or FRESH)((len(rows), *kept.shape[1:]), kept.dtype))
                for name, kept in self._kept.items()
            }
        missing, back = np.unique(rows[~found], return_inverse=True)
        made = self._source.gather(missing) if len(missing) else {}
        self._keep(missing, made)
        out: dict[str, Tensor] = {}
        for name, kept in self._kept.items():
            room = (make or FRESH)((len(rows), *kept.shape[1:]), kept.dtype)
            there = torch.from_numpy(np.flatnonzero(found))
            room.index_copy_(0, there, kept.index_select(0, torch.from_numpy(places[found])))
            not_there = torch.from_numpy(np.flatnonzero(~found))
            out[name] = room.index_copy_(0, not_there, made[name].index_select(0, torch.from_numpy(back)))
        return out

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Where each row is kept, -1 for rows that never are."""
        if self._kept_rows is None:
            return rows
        if not len(self._kept_rows):
            return np.full(len(rows), -1)
        at = np.minimum(np.searchsorted(self._kept_rows, rows), len(self._kept_rows) - 1)
        return np.where(self._kept_rows[at] == rows, at, -1)

    def _keep(self, rows: np.ndarray, made: dict[str, Tensor]) -> None:
        """Several threads or ranks may keep the same row at once: all of them write the same bytes."""
        places = self._places(rows)
        ours = np.flatnonzero(places >= 0)
        if not len(ours):
            return
        at, which = torch.from_numpy(places[ours]), torch.from_numpy(ours)
        for name, tensor in made.items():
            self._kept[name].index_copy_(0, at, tensor.index_select(0, which))
        self._flags[places[ours]] = 1  # after the bytes: whoever sees it finds them


class RecentSource:
    """`source` with the rows that were used last kept in memory, up to `budget` bytes."""

    reuses = False

    def __init__(self, source: Source, *, budget: int, meter: Meter | None = None) -> None:
        self._source, self._meter = source, meter
        self.columns: Mapping[str, ColumnInfo] = source.columns
        self.concurrent = getattr(source, "concurrent", False)
        self._given = {"budget": budget, "meter": meter}
        self._most = budget // max(bytes_of(source.columns, 1), 1)
        self._kept: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __reduce__(self) -> Any:
        return _recent_again, (self._source, self._given)

    @property
    def fingerprint(self) -> str:
        """The source's."""
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Column → [len(rows), …]."""
        with self._lock:
            found = {row: self._kept[row] for row in rows.tolist() if row in self._kept}
            for row in found:
                self._kept.move_to_end(row)
        missing = np.array(sorted(set(rows.tolist()) - found.keys()), np.int64)
        if self._meter is not None:
            hits = sum(row in found for row in rows.tolist())
            self._meter.add(hits=hits, misses=len(rows) - hits)
        made = self._source.gather(missing) if len(missing) or not len(rows) else {}
        for at, row in enumerate(missing.tolist()):
            found[row] = {name: tensor[at].clone() for name, tensor in made.items()}
        with self._lock:
            self._kept.update((row, found[row]) for row in missing.tolist())
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        if not len(rows):
            return made
        return {name: torch.stack([found[row][name] for row in rows.tolist()]) for name in self.columns}


def cached(source: Any, cache: Cache, meter: Meter, key: str) -> Any:
    """`source` behind the tiers of `cache`. key: of what was done to the data, beyond the source's fingerprint."""
    from .stored import stored

    if cache.folder is not None and cache.disk:
        source = stored(source, cache.folder, cache.disk, combined(source.fingerprint, key))
    if not cache.memory:
        return source
    if cache.policy == "recent":
        return RecentSource(source, budget=cache.memory, meter=meter)
    shared = combined(source.fingerprint, key, cache.memory) if cache.shared else None
    return CachedSource(source, budget=cache.memory, shared=shared, meter=meter)


def bytes_of(columns: Mapping[str, ColumnInfo], rows: int) -> int:
    """Memory that `rows` rows take."""
    return sum(prod(info.shape) * info.dtype.itemsize for info in columns.values()) * rows


def _chosen(rows: int, share: float) -> np.ndarray | None:
    """Rows that are kept, ascending; None for all. Which ones depends on their numbers alone."""
    if share >= 1.0:
        return None
    count = int(rows * share)
    spread = mixed(np.arange(rows, dtype=np.uint64))
    return np.sort(np.argpartition(spread, count)[:count]) if count else np.empty(0, np.int64)


def _arena(source: Source, count: int, shared: str | None) -> tuple[np.ndarray, dict[str, Tensor]]:
    """A flag for each place, and the columns' memory."""
    sizes = {name: bytes_of({name: info}, count) for name, info in source.columns.items()}
    if shared is None:
        # numpy's memory, not torch's: it asks for huge pages, without which random rows take half as long again.
        kept = {
            name: torch.from_numpy(np.empty(sizes[name], np.uint8)).view(info.dtype).view(count, *info.shape)
            for name, info in source.columns.items()
        }
        return np.zeros(max(count, 1), np.uint8), kept
    rounded = [-(-size // _ALIGNED) * _ALIGNED for size in (max(count, 1), *sizes.values())]
    memory = torch.from_numpy(node_memory(shared, sum(rounded)))  # filled with zeros
    begins = np.cumsum([0, *rounded]).tolist()
    columns = {
        name: memory[begin : begin + sizes[name]].view(info.dtype).view(count, *info.shape)
        for begin, (name, info) in zip(begins[1:], source.columns.items(), strict=False)
    }
    return memory[: max(count, 1)].numpy(), columns


def _again(source: Source, given: dict[str, Any]) -> CachedSource:
    return CachedSource(source, **given)


def _recent_again(source: Source, given: dict[str, Any]) -> RecentSource:
    return RecentSource(source, **given)
