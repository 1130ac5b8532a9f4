"""Run a function on several gloo ranks, in processes that live as long as the test session.

    results = run_on_ranks(function, 3, sparsity=0.5, ranks=4)      # function(3, sparsity=0.5) on each rank

Each call makes a process group of its own and destroys it after. The function may be defined in a test module
(it travels by value), and what it returns must be picklable. An exception on a rank comes back with its
traceback; a rank that dies or hangs fails the test, and its processes are replaced.
"""

import atexit
import functools
import gc
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any

import cloudpickle

MOST_RANKS = 8
_MOST_THREADS = (
    40  # fifteen for each group that torch keeps, and a third of them wake up a hundred times a second
)
_START_SECONDS = 300
_HERE = Path(__file__).resolve().parent
_workers: list["_Worker"] = []


class RanksFailed(AssertionError):
    """At least one rank raised, died or did not answer in time."""


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context(
            "forkserver"
        )  # one process imports, the workers are copies of it
        context.set_forkserver_preload(["forgepress.tests.preload"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # read when the child imports torch
        try:
            self.process.start()
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        theirs.close()
        self._ready = False

    def wait_until_ready(self) -> None:
        """Until torch is imported there: starting up is not the tested function's time."""
        if not self._ready and not self.pipe.poll(_START_SECONDS):
            raise RanksFailed(f"a worker process did not start within {_START_SECONDS} seconds")
        if not self._ready:
            self._ready = bool(self.pipe.recv_bytes())

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_on_ranks(
    function: Callable[..., Any], *args: Any, ranks: int = 2, timeout: float = 120.0, **kwargs: Any
) -> list[Any]:
    """What `function(*args, **kwargs)` returns on each of `ranks` gloo ranks, rank 0 first.

    With ranks=1 the function runs in a worker too, without a process group.
    timeout: seconds until all ranks must have answered.   raises: RanksFailed naming ranks and causes.
    """
    if not 1 <= ranks <= MOST_RANKS:
        raise ValueError(f"ranks={ranks}: want 1 to {MOST_RANKS}")
    while len(_workers) < ranks:
        _workers.append(_Worker())
    for worker in _workers[:ranks]:
        worker.wait_until_ready()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        task = _by_value((function, args, kwargs))
        for rank, worker in enumerate(_workers[:ranks]):
            worker.pipe.send_bytes(cloudpickle.dumps((task, rank, ranks, meeting, timeout)))
        answers, silent = _collect(ranks, time.monotonic() + timeout)
    failures = [f"rank {rank} of {ranks}: {text}" for rank, (fine, text) in answers.items() if not fine]
    failures += [f"rank {rank} of {ranks}: {why}" for rank, why in silent.items()]
    if failures:
        _replace(ranks)  # after a failure the others may still wait in a collective
        raise RanksFailed("\n\n".join(failures))
    if any(_threads(worker) > _MOST_THREADS for worker in _workers[:ranks]):
        _replace(ranks)  # torch keeps some process groups for good, with fifteen threads each
    return [answers[rank][1] for rank in range(ranks)]


def _threads(worker: "_Worker") -> int:
    """Threads of the worker's process; 0 where the system does not say."""
    tasks = Path(f"/proc/{worker.process.pid}/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def _collect(ranks: int, deadline: float) -> tuple[dict[int, tuple[bool, Any]], dict[int, str]]:
    answers: dict[int, tuple[bool, Any]] = {}
    silent: dict[int, str] = {}
    waiting: dict[Any, int] = {worker.pipe: rank for rank, worker in enumerate(_workers[:ranks])}
    while waiting:
        ready = wait_for_any(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            silent.update({rank: "did not answer in time (hangs?)" for rank in waiting.values()})
            break
        for pipe in ready:
            rank = waiting.pop(pipe)
            assert isinstance(pipe, Connection)
            try:
                answers[rank] = cloudpickle.loads(pipe.recv_bytes())
            except EOFError:
                _workers[rank].process.join(5)
                silent[rank] = f"the process died with exit code {_workers[rank].process.exitcode}"
        if silent or any(not fine for fine, _ in answers.values()):
            deadline = min(deadline, time.monotonic() + 2)  # the others have nobody left to wait for
    return answers, silent


def _replace(ranks: int) -> None:
    """New processes in the old places: torch keeps meshes of earlier tasks, and with them their owner's rank."""
    for place in range(ranks):
        _workers[place].end()
        _workers[place] = _Worker()


@atexit.register
def _end_all() -> None:
    for worker in _workers:
        worker.end()


@functools.cache  # thousands of modules, asked about at every call
def _is_of_tests(file: str) -> bool:
    return Path(file).resolve().is_relative_to(_HERE)


def _by_value(task: Any) -> bytes:
    """Pickle with everything that is defined under tests/ inside: workers import no test module."""
    registered = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and module.__name__ != __name__ and _is_of_tests(file):
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
    try:
        return cloudpickle.dumps(task)
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _serve(pipe: Connection) -> None:
    import torch
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    torch.set_num_threads(1)
    pipe.send_bytes(b"ready")
    while True:
        try:
            task, rank, ranks, meeting, timeout = cloudpickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = (True, _run(task, rank, ranks, meeting, timeout))
            message = cloudpickle.dumps(answer)
        except BaseException:
            message = cloudpickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(message)
        # Hooks and engines refer to each other; until they are collected, every process group of theirs keeps
        # fifteen threads alive, and hundreds of tests would leave thousands. So does what DTensor remembers of meshes.
        _clear_sharding_prop_cache()
        gc.collect()


def _run(task: bytes, rank: int, ranks: int, meeting: str, timeout: float) -> Any:
    import torch.distributed as dist
    from forgepress.parallel import join

    function, args, kwargs = cloudpickle.loads(task)
    with join("cpu", rank=rank, ranks=ranks, meeting=meeting, timeout=timeout):
        result = function(*args, **kwargs)
        if dist.is_initialized():
            dist.barrier()  # who leaves early would break the connections that another one is still making
        return result
