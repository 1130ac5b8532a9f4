"""The loader: batches of one data rank, made ahead of the step, resumable at any step on any mesh."""

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .augment import Augment
from .batch import Batch
from .device import placed, staged
from .plan import Group, Plan, Tail
from .prefetch import Prefetcher
from .source import Source

_GROUP_BYTES = (
    64 << 10
)  # batches are read together up to this size (calls cost more than copies below it), ...
_GROUP = 8  # ... but no more than so many
_PLANNED = 64  # batches whose row numbers are worked out at one go: next to a step Python runs on cold caches
_IN_STEP_BYTES = (
    4 << 20
)  # a resident source's batch up to this size is copied in the step: a thread costs more
_VERSION = 1


class Loader:
    """Batches of one data rank from a source. One consumer; every rank gets the same number of batches.

    source:       rows by number.
    batch:        real rows of a global batch, over all data ranks; at least ranks × microbatches.
    rank, ranks:  this data rank and their number. Tensor, pipeline and context peers share one data rank.
    seed, shuffle: the order of an epoch is a function of seed and epoch alone, whatever the mesh.
    microbatches: pieces that the global batch is cut into before it is dealt to the ranks.
    tail:         the last, shorter batch of an epoch: keep it, drop its rows, or pad it to a full batch's shape.
    pad_rows:     give every micro-batch of every rank the same number of rows, ceil(batch / (microbatches × ranks)).
    prefetch:     read-ahead of the thread, in reads of one or a few batches; 0: no thread. Small batches of sources
                  in memory are copied in the step itself, where that is cheaper than handing them over.
    augment:      changes the pictures of the column inputs, another way in every epoch.
    device:       where batches end up; CUDA batches go through page-locked memory without waiting.
    raises:       ConfigError for numbers that do not fit together; DataError when an epoch has no batch.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        microbatches: int = 1,
        tail: Tail = "keep",
        pad_rows: bool = False,
        prefetch: int = 2,
        augment: Augment | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        _check(
            batch=batch,
            rank=rank,
            ranks=ranks,
            seed=seed,
            microbatches=microbatches,
            tail=tail,
            prefetch=prefetch,
        )
        self._source = source
        self._plan = Plan(
            rows=len(source), batch=batch, rank=rank, ranks=ranks, seed=seed, shuffle=shuffle,
            microbatches=microbatches, tail=tail, pad_rows=pad_rows,
        )  # fmt: skip
        if not self._plan.batches:
            raise DataError(
                f"data: {len(source)} rows make no batch of {batch} with tail={tail}; give more rows, a smaller "
                "data.batch, or tail: keep"
            )
        self._device = None if device is None else torch.device(device)
        self._depth, self._augment = prefetch, augment
        self._epoch = self._consumed = 0
        self._waited = 0.0
        self._ready: deque[Batch] = deque()
        self._groups: Iterator[list[Batch]] | None = None
        self._prefetcher: Prefetcher[list[Batch]] | None = None
        self._finalizer: weakref.finalize | None = None

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return self._plan.batches

    @property
    def epoch(self) -> int:
        """Epoch of the next batch, from 0."""
        return self._epoch

    @property
    def wait_seconds(self) -> float:
        """Time that the consumer has waited for batches, in all; copies made in the step count."""
        return self._waited

    @property
    def threaded(self) -> bool:
        """Whether a thread makes batches ahead (chosen by source and size)."""
        is_cheap = getattr(self._source, "resident", False) and self._row_bytes() <= _IN_STEP_BYTES
        return self._depth > 0 and not (is_cheap and self._augment is None)

    def __iter__(self) -> Iterator[Batch]:
        """The batches left in the current epoch; after its end the next call gives the next epoch."""
        while True:
            batch = self._take()
            is_last = self._consumed == 0
            yield batch
            if is_last:
                return

    def stream(self) -> Iterator[Batch]:
        """Batches without end, epoch after epoch, from the current position."""
        while True:
            yield self._take()

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch handed out, as plain JSON values, equal on all ranks (under 1 KiB)."""
        return {
            "version": _VERSION,
            "fingerprint": self._source.fingerprint,
            "rows": self._plan.rows,
            "seed": self._plan.seed,
            "shuffle": self._plan.shuffle,
            "epoch": self._epoch,
            "consumed": self._consumed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch of `state`, also with other ranks, micro-batches, batch size or prefetch.

        Valid at any time; live iterators go on from the new position too.
        raises: DataError for other data, another seed or another order: rows would be repeated and lost.
        """
        mine = self.state_dict()
        if missing := sorted(mine.keys() - state.keys()):
            raise DataError(f"loader state lacks {', '.join(missing)}; want what Loader.state_dict gave")
        wanted = {
            "version": "this state is of another version; resume with the version that wrote it",
            "fingerprint": "the data have changed since; put back the data that the run began with, or begin anew",
            "rows": "the data have changed since; put back the data that the run began with, or begin anew",
            "seed": "the order would be another one; set seed back, or begin anew",
            "shuffle": "the order would be another one; set data.shuffle back, or begin anew",
        }
        for key, advice in wanted.items():
            if state[key] != mine[key]:
                raise DataError(f"loader state has {key} {state[key]}, this run has {mine[key]}: {advice}")
        epoch, consumed = state["epoch"], state["consumed"]
        if (
            type(epoch) is not int
            or type(consumed) is not int
            or epoch < 0
            or not 0 <= consumed <= self._plan.rows
        ):
            raise DataError(
                f"loader state has epoch {epoch!r} and consumed {consumed!r}; want 0 or more, and at most "
                f"{self._plan.rows} rows consumed: the checkpoint is damaged"
            )
        self.close()
        self._epoch, self._consumed = self._plan.next(epoch, consumed)

    def close(self) -> None:
        """End the thread and drop what was prefetched; the position stays, and the loader can be used again."""
        if self._finalizer is not None:
            self._finalizer()
        self._prefetcher = self._finalizer = self._groups = None
        self._ready.clear()

    def _take(self) -> Batch:
        if not self._ready:
            begin = perf_counter()
            self._ready.extend(self._next_group())
            self._waited += perf_counter() - begin
        batch = self._ready.popleft()
        self._epoch, self._consumed = self._plan.next(batch.epoch, self._consumed + batch.global_rows)
        return batch if self._device is None else placed(batch, self._device)

    def _next_group(self) -> list[Batch]:
        try:
            if self._prefetcher is not None:
                return self._prefetcher.get()
            if self._groups is None:
                self._start()
                return self._next_group()
            return next(self._groups)
        except BaseException:
            self.close()  # a generator that raised is over: the next call begins anew at the same position
            raise

    def _start(self) -> None:
        size = min(max(_GROUP_BYTES // max(self._row_bytes(), 1), 1), _GROUP, self._plan.batches)
        planned = self._plan.groups(self._epoch, self._consumed, max(_PLANNED // size, 1) * size)
        change = partial(_augmented, self._augment, self._plan.seed) if self._augment else None
        self._groups = _read(self._source, planned, size, self._device, change)
        if self.threaded:
            self._prefetcher = Prefetcher(self._groups, depth=self._depth)
            # Also called when the loader is dropped or the interpreter ends.
            self._finalizer = weakref.finalize(self, self._prefetcher.stop)

    def _row_bytes(self) -> int:
        """Bytes of a full batch of this rank."""
        row = sum(prod(info.shape) * info.dtype.itemsize for info in self._source.columns.values())
        return row * len(self._plan.part(self._plan.batch).positions)


def _read(
    source: Source,
    planned: Iterator[Group],
    size: int,
    device: torch.device | None,
    change: Callable[[dict[str, Tensor], np.ndarray, int], dict[str, Tensor]] | None,
) -> Iterator[list[Batch]]:
    """Up to ``size`` batches at a time from one gather; a function, so that the thread holds no loader."""
    for group in (piece for plan in planned for piece in plan.pieces(size)):
        single = len(group.rows) == 1
        rows = group.rows[0] if single else np.concatenate(group.rows)
        columns = source.gather(rows)
        gathered = staged(change(columns, rows, group.epoch) if change else columns, device)
        if single:
            pieces = [gathered]
        else:
            sizes = [len(rows) for rows in group.rows]
            split = {name: tensor.split(sizes) for name, tensor in gathered.items()}
            pieces = [{name: tensors[at] for name, tensors in split.items()} for at in range(len(sizes))]
        yield [
            Batch(columns, part.valid, real, group.epoch, group.index + at, torch.from_numpy(rows))
            for at, (columns, part, real, rows) in enumerate(
                zip(pieces, group.parts, group.real, group.rows, strict=True)
            )
        ]


def _augmented(
    augment: Augment, seed: int, columns: dict[str, Tensor], rows: np.ndarray, epoch: int
) -> dict[str, Tensor]:
    if "inputs" not in columns:
        raise DataError(f"data.augment changes the column inputs; the data have {', '.join(columns)}")
    return {**columns, "inputs": augment(columns["inputs"], rows, seed=seed, epoch=epoch)}


def _check(**given: Any) -> None:
    for name, least in (
        ("batch", 1),
        ("ranks", 1),
        ("microbatches", 1),
        ("rank", 0),
        ("seed", 0),
        ("prefetch", 0),
    ):
        if isinstance(given[name], bool) or not isinstance(given[name], int) or given[name] < least:
            raise ConfigError(f"data: {name}={given[name]!r}; want a whole number, {least} or more")
    if given["rank"] >= given["ranks"]:
        raise ConfigError(
            f"data: rank={given['rank']} of ranks={given['ranks']}; want 0 to {given['ranks'] - 1}"
        )
    if given["tail"] not in ("keep", "drop", "pad"):
        raise ConfigError(f"data.tail={given['tail']!r}; want keep, drop or pad")
    pieces = given["ranks"] * given["microbatches"]
    if given["batch"] < pieces:
        raise ConfigError(
            f"data.batch={given['batch']} is dealt to {given['ranks']} data ranks × {given['microbatches']} "
            f"micro-batches; want at least {pieces}, so that each has a row"
        )
