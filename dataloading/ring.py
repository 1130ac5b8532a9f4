"""Threads that make things ahead of their use, in order."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Generic, TypeVar

import torch

Task = TypeVar("Task")
T = TypeVar("T")
_TUNED_EVERY = 16  # items between two looks at the depth
_DEEPEST = 64  # more hides nothing that 64 do not
_NEVER_WAITED = 8  # such looks without any wait after which the depth shrinks again


class Ring(Generic[Task, T]):
    """Turns tasks into things in threads of its own, at most `depth` of them ahead, delivered in the tasks' order.

    The depth grows where the consumer waits although the threads had been idle, and shrinks to `depth` again.
    It must not be reachable from what it works for, so that dropping that ends the threads.

    most:  greatest depth by bytes: given one finished thing, how many of its kind may lie ready.
    """

    def __init__(
        self,
        tasks: Iterator[Task],
        work: Callable[[Task], T],
        *,
        threads: int,
        depth: int,
        most: Callable[[T], int] = lambda thing: 0,
    ) -> None:
        self._tasks, self._work, self._most = tasks, work, most
        self.depth = self._least = depth
        self._limit = depth
        self.changes: deque[tuple[int, int]] = deque(maxlen=32)
        """(items taken, new depth): the last changes."""
        self._done: dict[int, tuple[Any, BaseException | None]] = {}
        self._changed, self._planning = threading.Condition(), threading.Lock()
        self._begun = self._given = self._taken = 0
        self._stopped = self._ended = False
        self._waited = self._idle = 0.0
        self._since, self._calm = perf_counter(), 0
        self._threads = [self._start(number) for number in range(threads)]

    def get(self) -> T:
        """The next thing, waited for. StopIteration at the end; the work's error, after the things before it."""
        begin = perf_counter()
        with self._changed:
            while self._taken not in self._done and not (self._ended and self._taken >= self._given):
                self._changed.wait()
            if self._taken not in self._done:
                raise StopIteration
            thing, error = self._done.pop(self._taken)
            self._taken += 1
            self._waited += perf_counter() - begin
            if error is None and self._taken % _TUNED_EVERY == 0:
                self._tune()
            self._changed.notify_all()
        if error is not None:
            raise error
        return thing

    @property
    def ready(self) -> int:
        """Things that lie ready now."""
        return len(self._done)

    def stop(self) -> None:
        """End the threads and wait for them (what is in the making is finished). Harmless when repeated."""
        with self._changed:
            self._stopped = True
            self._done.clear()
            self._changed.notify_all()
        for thread in self._threads:
            # The garbage collector may call this from such a thread itself, which cannot wait for its own end.
            if thread is not threading.current_thread():
                thread.join()

    def _start(self, number: int) -> threading.Thread:
        started = threading.Event()
        thread = threading.Thread(target=self._run, args=(started,), name="forgepress-prefetch", daemon=True)
        thread.start()
        started.wait()
        # The thread's call set the number that threads started later would have; put this thread's own back.
        torch.set_num_threads(torch.get_num_threads())
        return thread

    def _run(self, started: threading.Event) -> None:
        torch.set_num_threads(
            1
        )  # else its tensor operations would take the cores that the training step uses
        started.set()
        while self._has_room():
            with self._planning:
                ticket = self._given
                task, error = self._next()
                if task is None and error is None:
                    break
                self._given += 1
            thing = None
            if error is None:
                try:
                    thing = self._work(task)  # type: ignore[arg-type]
                    if ticket == 0:
                        self._limit = max(self._least, min(self._most(thing), _DEEPEST))
                except BaseException as raised:  # handed to the consumer, whatever it is
                    error = raised
            with self._changed:
                if self._stopped:
                    return
                self._done[ticket] = (thing, error)
                self._ended |= error is not None
                self._changed.notify_all()
            del thing, task
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _next(self) -> tuple[Task | None, BaseException | None]:
        if self._ended:
            return None, None
        try:
            return next(self._tasks), None
        except StopIteration:
            return None, None
        except BaseException as error:
            return None, error

    def _has_room(self) -> bool:
        """Wait until another thing may be made; False when stopped."""
        with self._changed:
            begin = perf_counter()
            while self._begun - self._taken >= self.depth and not self._stopped and not self._ended:
                self._changed.wait()
            self._idle += perf_counter() - begin
            self._begun += 1
            return not self._stopped and not self._ended

    def _tune(self) -> None:
        """Deeper where threads were idle and still the consumer waited; less deep after a long time of neither."""
        now = perf_counter()
        passed, self._since = now - self._since, now
        has_waited, was_idle = self._waited > 0.01 * passed, self._idle > 0.01 * passed
        self._waited = self._idle = 0.0
        self._calm = 0 if has_waited else self._calm + 1
        wanted = self.depth
        if has_waited and was_idle:
            wanted = min(self.depth * 2, self._limit)
        elif self._calm >= _NEVER_WAITED and self.depth > self._least:
            wanted, self._calm = self.depth - 1, 0
        if wanted != self.depth:
            self.depth = wanted
            self.changes.append((self._taken, wanted))
