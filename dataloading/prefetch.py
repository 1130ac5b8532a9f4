"""A thread that makes things ahead of their use, in order."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Runs an iterator in a thread of its own, at most `depth` items ahead.

    It must not be reachable from what it prefetches for, so that dropping that ends the thread.
    """

    def __init__(self, items: Iterator[T], *, depth: int) -> None:
        self._items, self._depth = items, depth
        self._made: deque[T] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forgepress-prefetch", daemon=True)
        self._thread.start()
        self._started.wait()
        # The thread's call set the number that threads started later would have; put this thread's own back.
        torch.set_num_threads(torch.get_num_threads())

    def get(self) -> T:
        """The next item, waited for. StopIteration at the end; the iterator's error, after the items before it."""
        with self._changed:
            while not self._made and not self._ended:
                self._changed.wait()
            if self._made:
                item = self._made.popleft()
                self._changed.notify()
                return item
        if self._error is not None:
            raise self._error
        raise StopIteration

    def stop(self) -> None:
        """End the thread and wait for it (the item in the making is finished). Harmless when repeated."""
        with self._changed:
            self._stopped = True
            self._made.clear()
            self._changed.notify()
        # The garbage collector may call this from the thread itself, which cannot wait for its own end.
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(
            1
        )  # else its tensor operations would take the cores that the training step uses
        self._started.set()
        try:
            while self._has_room():
                item = next(self._items)
                with self._changed:
                    self._made.append(item)
                    self._changed.notify()
                del item
        except StopIteration:
            pass
        except BaseException as error:  # handed to the consumer, whatever it is
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _has_room(self) -> bool:
        """Wait until another item may be made; False when stopped."""
        with self._changed:
            while len(self._made) >= self._depth and not self._stopped:
                self._changed.wait()
            return not self._stopped
