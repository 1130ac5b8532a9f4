"""The loader: batches of one data rank, made ahead of the step, resumable at any step on any mesh."""

import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from math import prod
from time import perf_counter
from typing import Any, Literal

import torch

from ..errors import ConfigError, DataError
from . import state as states
from .augment import Augment
from .batch import Batch
from .cache import Cache, cached
from .choice import choose_mode
from .device import Placer
from .faults import Substituting
from .lengths import Buckets
from .making import BatchFunction, Made, Maker
from .meter import Meter
from .mixing import MixedOrder
from .opening import as_source
from .ordering import make_order
from .packing import PackedOrder, Packing
from .plan import Plan, Position, Tail
from .prepared import PreparedSource, mark_of
from .process import LoaderProcess, tasks
from .report import Report, report_of
from .ring import Ring
from .settings import check

# Batches are read together up to this size, in the step and by threads: below it Python's own work and handing over
# cost more than the copies. But no more than so many at once.
_READ_BYTES = 512 << 10, 4 << 20
_READ = 8, 16
_PLANNED = 64  # batches whose row numbers are worked out at one go: next to a step Python runs on cold caches
_IN_STEP_BYTES = (
    4 << 20
)  # a resident source's batch up to this size is copied in the step: a thread costs more


class Loader:
    """Batches of one data rank. One consumer; every rank gets the same number of batches.

    source:       a `datasets.Dataset`, a dict of arrays, a Source, or several of these in a list.
    batch:        real rows of a global batch, over all data ranks; at least ranks × microbatches.
    rank, ranks:  this data rank and their number. Tensor, pipeline and context peers share one data rank.
    seed, shuffle: the order of an epoch is a function of seed and epoch alone, whatever the mesh. shuffle may be a
                  number of blocks: then blocks are shuffled, and rows inside every so many of them (ParquetSource).
    weights:      of several sources: their shares at every moment; empty: their sizes, all rows shuffled together.
    buckets, pack: rows of like length side by side; documents packed into rows of one length.
    microbatches: pieces that the global batch is cut into before it is dealt to the ranks.
    tail:         the last, shorter batch of an epoch: keep it, drop its rows, pad it to a full batch's shape, or wrap:
                  fill it up with the epoch's first rows.
    pad_rows:     give every micro-batch of every rank the same number of rows, ceil(batch / (microbatches × ranks)).
    augment, transform: changes the pictures of the column inputs; any function of a batch's columns (see
                  `making.BatchFunction`). Random ones draw from (seed, epoch, row).
    prepare, cache: a function of a batch's columns that draws nothing, done before `augment` and `transform`, and what
                  is kept of what it gives (or of what was read).
    prefetch:     read-ahead, in reads of one or a few batches, which grows where it helps; 0: no thread. Small batches
                  of sources in memory are copied in the step itself, where that is cheaper than handing them over.
    threads:      that read and transform; empty: 2 where there are cores and the source allows it.
    mode:         thread, process (one, for transforms that hold Python's lock), or auto, which measures.
    budget:       bytes of batches that may lie ready.
    on_error:     a row that cannot be read: raise, or substitute another fixed row for up to `most_errors` of them.
    device:       where batches end up; to CUDA on a stream of their own, from page-locked memory.
    raises:       ConfigError for numbers that do not fit together; DataError when an epoch has no batch.
    """

    def __init__(
        self,
        source: Any,
        *,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        shuffle: bool | int = True,
        weights: Sequence[float] | None = None,
        buckets: Buckets | None = None,
        pack: Packing | None = None,
        microbatches: int = 1,
        tail: Tail = "keep",
        pad_rows: bool = False,
        augment: Augment | None = None,
        transform: BatchFunction | None = None,
        prepare: BatchFunction | None = None,
        cache: Cache | None = None,
        prefetch: int = 2,
        threads: int | None = None,
        mode: Literal["auto", "thread", "process"] = "auto",
        budget: int = 1 << 30,
        on_error: Literal["raise", "substitute"] = "raise",
        most_errors: int = 100,
        device: torch.device | str | None = None,
    ) -> None:
        check(
            batch=batch, rank=rank, ranks=ranks, seed=seed, shuffle=shuffle, microbatches=microbatches, tail=tail,
            prefetch=prefetch, threads=threads, mode=mode, budget=budget, on_error=on_error, most_errors=most_errors,
        )  # fmt: skip
        self._meter = Meter()
        self._source, order = make_order(
            source,
            as_source,
            seed=seed,
            shuffle=shuffle,
            weights=weights,
            buckets=buckets,
            pack=pack,
            batch=batch,
        )
        self._seed, self._shuffle = seed, shuffle
        ragged = getattr(self._source, "ragged", None) and not isinstance(order, PackedOrder)
        self._plan = Plan(
            order=order, batch=batch, rank=rank, ranks=ranks, microbatches=microbatches, tail=tail, pad_rows=pad_rows,
            lengths=self._source.lengths if ragged else None,  # type: ignore[attr-defined]
        )  # fmt: skip
        self._at = self._plan.next(Position(0, 0, 0, 0))
        if self._at.epoch:
            raise DataError(
                f"data: {len(self._source)} rows make no batch of {batch} with tail={tail}; give more rows, a smaller "
                "data.batch, or tail: keep"
            )
        self._device = None if device is None else torch.device(device)
        on_cuda = self._device is not None and self._device.type == "cuda"
        read: Any = self._source
        if on_error == "substitute":
            read = Substituting(read, most_errors, self._meter)
        if prepare is not None:
            read = PreparedSource(read, prepare)
        if cache is not None:
            read = cached(read, cache, self._meter, mark_of(prepare))
        self._read = read
        packed = order if isinstance(order, PackedOrder) else None
        if packed is not None and (prepare is not None or cache is not None):
            raise ConfigError(
                "data: packed rows are made of raw tokens; use transform instead of prepare and cache"
            )
        self._maker = Maker(
            source=read,
            seed=seed,
            meter=self._meter,
            augment=augment,
            transform=transform,
            packed=packed,
            pinned=on_cuda,
        )
        self._placer = Placer(self._device) if self._device is not None and on_cuda else None
        self._depth, self._threads, self._mode, self._budget = prefetch, threads, mode, budget
        self._waited, self._began = 0.0, 0.0
        self._ready: deque[Made] = deque()
        self._work: Iterator[list[Made]] | None = None
        self._ahead: Ring[Any, list[Made]] | LoaderProcess | None = None
        self._finalizer: weakref.finalize | None = None

    def __len__(self) -> int:
        """Batches of a whole epoch (of the present one where documents are packed), the same on every rank."""
        return self._plan.batches(self._at.epoch)

    @property
    def source(self) -> Any:
        """What is read."""
        return self._source

    @property
    def epoch(self) -> int:
        """Epoch of the next batch, from 0."""
        return self._at.epoch

    @property
    def wait_seconds(self) -> float:
        """Time that the consumer has waited for batches, in all; copies made in the step count."""
        return self._waited

    @property
    def threaded(self) -> bool:
        """Whether batches are made ahead by threads or a process (chosen by source and size)."""
        is_plain = (
            self._maker.augment is None and self._maker.transform is None and self._maker.packed is None
        )
        is_cheap = getattr(self._read, "resident", False) and self._batch_bytes() <= _IN_STEP_BYTES
        return self._depth > 0 and not (is_cheap and is_plain and self._mode == "auto")

    def __iter__(self) -> Iterator[Batch]:
        """The batches left in the current epoch; after its end the next call gives the next epoch."""
        while True:
            batch = self._take()
            is_last = self._at.epoch != batch.epoch
            yield batch
            if is_last:
                return

    def stream(self) -> Iterator[Batch]:
        """Batches without end, epoch after epoch, from the current position."""
        while True:
            yield self._take()

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch handed out, as plain JSON values, equal on all ranks (under 1 KiB)."""
        order = self._plan.order
        mixed = {"mix": order.state(*self._at[::2])} if isinstance(order, MixedOrder) else {}
        return {
            "version": states.VERSION,
            "fingerprint": self._source.fingerprint,
            "rows": len(self._source),
            "seed": self._seed,
            "shuffle": self._shuffle,
            "order": dict(order.describe()),
            **mixed,
            **self._at._asdict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch of `state`, also with other ranks, micro-batches, batch size, depth or mode.

        Valid at any time; live iterators go on from the new position too. Other `weights` count from there on.
        raises: DataError for other data, another seed or another order: rows would be repeated and lost.
        """
        order, at = states.resume(self._plan.order, state, self.state_dict())
        self.close()
        self._plan = states.with_order(self._plan, order)
        self._at = self._plan.next(at)

    def report(self) -> Report:
        """Where time and bytes went since the loader began, and which stage binds."""
        return report_of(self._meter, self._ahead, waited=self._waited, began=self._began)

    def close(self) -> None:
        """End threads or process and drop what was prefetched; the position stays, and the loader can be used again."""
        if self._finalizer is not None:
            self._finalizer()
        self._ahead = self._finalizer = self._work = None
        self._ready.clear()
        if self._placer is not None:
            self._placer.clear()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self) -> Batch:
        begin = perf_counter()
        self._began = self._began or begin
        made = self._placer.next(self._next) if self._placer is not None else self._next()
        self._waited += perf_counter() - begin
        self._at = made.after
        return made.batch

    def _next(self) -> Made:
        if not self._ready:
            self._ready.extend(self._next_group())
        return self._ready.popleft()

    def _next_group(self) -> list[Made]:
        try:
            if self._ahead is not None:
                return self._ahead.get()
            if self._work is None:
                self._start()
                return self._next_group()
            return next(self._work)
        except BaseException:
            self.close()  # a generator that raised is over: the next call begins anew at the same position
            raise

    def _start(self) -> None:
        size = 1
        if self._plan.lengths is None:
            most, count = _READ_BYTES[self.threaded], _READ[self.threaded]
            size = min(max(most // max(self._batch_bytes(), 1), 1), count)
        sizes = (size, max(_PLANNED // size, 1) * size)
        self._work = map(self._maker, tasks(self._plan, self._at, sizes))
        if not self.threaded:
            return
        threads = self._threads or (2 if (os.cpu_count() or 1) > 1 else 1)
        if not getattr(self._read, "concurrent", False):
            threads = 1
        groups = tasks(self._plan, self._at, sizes)
        mode = choose_mode(self._mode, self._maker, tasks(self._plan, self._at, sizes), threads)
        if mode == "process":
            self._ahead = self._process(sizes, threads)
        if self._ahead is None:
            budget = self._budget
            self._ahead = Ring(
                groups, self._maker, threads=min(threads, self._depth), depth=self._depth,
                most=lambda made: budget // max(_bytes_of(made), 1),
            )  # fmt: skip
        # Also called when the loader is dropped or the interpreter ends.
        self._finalizer = weakref.finalize(self, self._ahead.stop)

    def _process(self, sizes: tuple[int, int], threads: int) -> LoaderProcess | None:
        """None where `auto` has chosen it and what the user gave cannot go there."""
        try:
            return LoaderProcess(
                self._maker, self._plan, self._at, sizes=sizes, threads=threads,
                depth=max(2 * self._depth, 4), budget=self._budget,
            )  # fmt: skip
        except DataError:
            if self._mode == "process":
                raise
            return None

    def _batch_bytes(self) -> int:
        """Bytes of a full batch of this rank."""
        rows = len(self._plan.part(self._plan.batch).positions)
        if isinstance(self._plan.order, PackedOrder):
            return rows * self._plan.order.packing.length * 12
        return rows * sum(prod(info.shape) * info.dtype.itemsize for info in self._read.columns.values())


def _bytes_of(made: list[Made]) -> int:
    return sum(tensor.nbytes for one in made for tensor in one.batch.columns.values())
