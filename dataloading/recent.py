"""The last few results of a costly pure function: for objects that travel to another process without them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps what `make(*key)` gave for the `size` keys that were asked for last.

    Safe to share among threads; of those that want the same key at once one makes it, and the others wait for it.
    """

    def __init__(self, make: Callable[..., T], size: int) -> None:
        self._make, self._size = make, size
        self.__setstate__((make, size))

    def __call__(self, *key: Hashable) -> T:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            try:
                made = self._make(*key)
                with self._lock:
                    self._kept[key] = made
                    while len(self._kept) > self._size:
                        self._kept.popitem(last=False)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return made

    def __getstate__(self) -> tuple[Callable[..., T], int]:
        return self._make, self._size

    def __setstate__(self, state: tuple[Callable[..., T], int]) -> None:
        self._make, self._size = state
        self._kept: OrderedDict[tuple[Hashable, ...], T] = OrderedDict()
        self._making: dict[tuple[Hashable, ...], threading.Lock] = {}
        self._lock = threading.Lock()
