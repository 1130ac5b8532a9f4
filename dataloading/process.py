"""A process that makes batches where Python's lock would keep the training step waiting.

Batches lie in memory that both processes map and that has no name: it is gone with the last of them, however they
end. Only numbers of slots and shapes go through the pipe.
"""

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .batch import Batch
from .making import Made, Maker
from .node import shared_memory
from .plan import Group, Plan, Position

_ALIGNED = 64
_BY_PIPE = -1  # for a slot's number: a batch that is larger than a slot, or that finds none free
_LOOKED_EVERY = 0.5  # seconds between two looks whether the process lives


class LoaderProcess:
    """Runs `maker` on the groups of a plan in another process, in order; used like a Ring.

    raises: DataError where function or source cannot travel; RuntimeError when the process has died, within a second.
    """

    def __init__(
        self,
        maker: Maker,
        plan: Plan,
        at: Position,
        *,
        sizes: tuple[int, int],
        threads: int,
        depth: int,
        budget: int,
    ) -> None:
        import dill  # comes with datasets; takes functions of the main script along, which pickle cannot

        try:
            given = (maker, plan, at, sizes, threads, depth, budget)
            order = dill.dumps(given, recurse=True)
        except Exception as error:  # whatever the user's objects raise when they are taken apart
            raise DataError(
                f"mode=process: the source or a transform cannot go to another process ({error}); use mode=thread"
            ) from error
        ours, theirs = socket.socketpair()
        self.depth, self.changes = depth, ()
        self._meter = maker.meter
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        self._pipe = Connection(ours.detach())
        self._memory: np.ndarray | None = None
        self._slot_bytes = self._slots = 0
        self._lent: set[int] = set()
        try:
            self._pipe.send_bytes(order)
        except OSError:
            self._raise_dead()
        # "ready", or what it could not import: told here, where another mode can still be taken.
        if (answer := self._receive())[0] == "unfit":
            self.stop()
            raise DataError(f"mode=process: the loader process cannot take what it was given ({answer[1]})")

    def get(self) -> list[Made]:
        """The next group's batches; the maker's error where it raised one."""
        if self._slots and len(self._lent) >= self._slots:
            _give_back(
                self._pipe, self._lent, _BY_PIPE
            )  # every slot is kept by somebody: this one comes another way
        while True:
            kind, *content = self._receive()
            if kind == "memory":
                self._map(*content)
            elif kind == "error":
                raise content[0]
            else:
                made, slot, values = content
                self._meter.take(values)
                return self._batches(made, slot)

    @property
    def ready(self) -> int:
        """1 where a group lies ready now."""
        return int(self._pipe.poll(0))

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def stop(self) -> None:
        """End the process. Batches that were handed out stay as they are."""
        if not self._pipe.closed:
            self._pipe.close()  # it ends by itself when its pipe has no other end
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> tuple[Any, ...]:
        try:
            while not self._pipe.poll(_LOOKED_EVERY):
                if self._process.poll() is not None:
                    self._raise_dead()
            return pickle.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            return self._raise_dead()

    def _raise_dead(self) -> Any:
        code = self._process.wait(5)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise RuntimeError(
            f"the loader process {self._process.pid} has ended with {how}; if the system ran out of memory, give the "
            "loader a smaller budget, else see what it wrote above"
        ) from None

    def _map(self, size: int, slot_bytes: int) -> None:
        handle = recv_handle(self._pipe)
        whole = mmap.mmap(handle, size)
        os.close(handle)
        self._memory, self._slot_bytes = np.frombuffer(whole, np.uint8), slot_bytes
        self._slots = size // slot_bytes

    def _batches(self, made: list[Any], slot: int) -> list[Made]:
        if slot == _BY_PIPE:
            return [Made(Batch(*fields), Position(*after)) for fields, after in made]
        assert self._memory is not None
        lent = self._memory[slot * self._slot_bytes : (slot + 1) * self._slot_bytes]
        base = torch.from_numpy(lent)
        self._lent.add(slot)
        weakref.finalize(lent, _give_back, self._pipe, self._lent, slot).atexit = False
        return [
            Made(
                Batch({name: _view(base, *where) for name, where in columns.items()}, *rest), Position(*after)
            )
            for (columns, *rest), after in made
        ]


_MAIN = "import sys; from forgepress.dataloading.process import main; main(int(sys.argv[1]))"


def main(handle: int) -> None:
    """The process: makes what the first message says until nobody listens any more."""
    import dill

    # The run decides what a signal to all its processes means; this process ends with it, whatever a transform does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    pipe = Connection(handle)
    try:
        content = pipe.recv_bytes()
        try:
            maker, plan, at, sizes, threads, depth, budget = dill.loads(content)
        except Exception as error:  # whatever importing the user's modules raises
            pipe.send_bytes(pickle.dumps(("unfit", f"{type(error).__name__}: {error}")))
            return
        pipe.send_bytes(pickle.dumps(("ready",)))
        _serve(pipe, maker, tasks(plan, at, sizes), threads, depth, budget)
    except (EOFError, ConnectionError):
        pass
    except BaseException as error:
        _tell(pipe, error)
    finally:
        sys.stdout.flush()
        os._exit(0)  # threads may be in the middle of a batch that nobody wants


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def tasks(plan: Plan, at: Position, sizes: tuple[int, int]) -> Iterator[Group]:
    """Groups of `sizes[0]` batches from a position on, planned `sizes[1]` batches at a time."""
    return (piece for planned in plan.groups(at, sizes[1]) for piece in planned.pieces(sizes[0]))


def _serve(
    pipe: Connection, maker: Maker, groups: Iterator[Group], threads: int, depth: int, budget: int
) -> None:
    from .ring import Ring

    torch.set_num_threads(1)
    ring = Ring(groups, maker, threads=threads, depth=threads + 1)
    made = ring.get()
    slot_bytes = (_bytes_of(made) * 5 // 4 // 4096 + 1) * 4096  # a little more: padded batches differ in size
    slots = max(min(depth, budget // slot_bytes), 2)
    handle, memory = shared_memory(slot_bytes * slots)
    pipe.send_bytes(pickle.dumps(("memory", slot_bytes * slots, slot_bytes)))
    send_handle(pipe, handle, os.getppid())
    os.close(handle)
    free = list(range(slots))
    while True:
        while pipe.poll(0) or not free:
            free.append(pickle.loads(pipe.recv_bytes()))
        slot = free.pop()
        if _bytes_of(made) > slot_bytes and slot != _BY_PIPE:
            free.append(slot)
            slot = _BY_PIPE
        if slot != _BY_PIPE:
            told = _lay_down(made, memory[slot * slot_bytes : (slot + 1) * slot_bytes])
        else:
            told = [(_fields(one.batch), tuple(one.after)) for one in made]
        pipe.send_bytes(pickle.dumps(("batch", told, slot, maker.meter.values())))
        made = ring.get()


def _lay_down(made: list[Made], memory: np.ndarray) -> list[Any]:
    """Copy the batches into `memory`; returns what `_batches` needs."""
    at, told = 0, []
    base = torch.from_numpy(memory)
    for batch, after in made:
        places = {}
        for name, tensor in batch.columns.items():
            dense = tensor if _is_dense(tensor) else tensor.contiguous()
            where = (at, tuple(dense.shape), dense.stride(), dense.dtype)
            _view(base, *where).copy_(dense)
            places[name] = where
            at += -(-dense.nbytes // _ALIGNED) * _ALIGNED
        told.append(((places, *_fields(batch)[1:]), tuple(after)))
    return told


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill one stretch of memory, in any order of dims."""
    order = sorted(range(tensor.dim()), key=lambda dim: (-tensor.stride(dim), -tensor.shape[dim]))
    return tensor.permute(order).is_contiguous()


def _view(
    base: Tensor, at: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    count = int(np.prod(shape))
    flat = base[at : at + count * dtype.itemsize].view(dtype)
    return flat.as_strided(shape, stride)


def _bytes_of(made: list[Made]) -> int:
    sizes = (
        -(-tensor.nbytes // _ALIGNED) * _ALIGNED for one in made for tensor in one.batch.columns.values()
    )
    return sum(sizes) + 1


def _fields(batch: Batch) -> tuple[Any, ...]:
    return (batch.columns, batch.valid, batch.global_rows, batch.epoch, batch.index, batch.rows)


def _tell(pipe: Connection, error: BaseException) -> None:
    try:
        content = pickle.dumps(("error", error))
        pickle.loads(content)
    except Exception:  # an error that cannot travel: its text can
        content = pickle.dumps(("error", RuntimeError(f"{type(error).__name__}: {error}")))
    with suppress(OSError):
        pipe.send_bytes(content)


def _give_back(pipe: Connection, lent: set[int], slot: int) -> None:
    lent.discard(slot)
    if not pipe.closed:
        with suppress(OSError):  # the process may be gone, and with it the slot
            pipe.send_bytes(pickle.dumps(slot))
