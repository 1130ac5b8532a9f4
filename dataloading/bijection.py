"""Permutations that are arithmetic: the row at any position, without the positions before it."""

from functools import lru_cache
from math import isqrt

import numpy as np

from . import native

SORTED = 1 << 20  # up to so many numbers a sorted table is quicker than arithmetic, and small
_ROUNDS = 8
_CHUNK = 1 << 14  # numbers worked on at a time: all arrays of a round stay in the processor's cache


class Permutation:
    """The numbers 0 to `size` - 1 in the order that `key` draws; equal in every process and on every machine.

    key:    whole numbers of 0 or more, such as (seed, epoch).
    cost:   up to a million numbers one sorted table (12 ms, 8 bytes a number); beyond it no memory, and 25 ns a number
            (60 without a compiler).
    source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains: a Feistel network over two digits of base
            ceil(sqrt(size)); numbers that fall outside are sent through again.
    """

    def __init__(self, size: int, key: tuple[int, ...]) -> None:
        self.size, self._key = size, key
        if size > SORTED:
            self._base = isqrt(size - 1) + 1
            words = np.random.Philox(np.random.SeedSequence([*key, size])).random_raw(_ROUNDS)
            self._words = (words >> np.uint64(32)).astype(np.uint32)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The numbers (int64) at `positions` (int64, 0 to size - 1)."""
        if self.size <= SORTED:
            return _table(self.size, self._key)[positions]
        if native.library() is not None:
            return native.permuted(positions, self.size, self._base, self._words)
        found = np.empty(len(positions), np.int64)
        for begin in range(0, len(positions), _CHUNK):
            numbers = self._once(positions[begin : begin + _CHUNK].astype(np.uint64))
            while len(outside := np.flatnonzero(numbers >= self.size)):
                numbers[outside] = self._once(numbers[outside])
            found[begin : begin + _CHUNK] = numbers.view(np.int64)
        return found

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        base = np.uint64(self._base)
        left, right = np.divmod(numbers, base)
        for word in self._words:
            drawn = (_mixed(right.astype(np.uint32), word).astype(np.uint64) * base) >> np.uint64(32)
            drawn += left
            drawn -= base * (drawn >= base)
            left, right = right, drawn
        left *= base
        left += right
        return left


def _mixed(bits: np.ndarray, word: np.uint32) -> np.ndarray:
    """uint32 → uint32, evenly spread. source: the finalizer of Appleby's MurmurHash3."""
    bits = bits ^ word
    bits ^= bits >> np.uint32(16)
    bits *= np.uint32(0x85EBCA6B)
    bits ^= bits >> np.uint32(13)
    bits *= np.uint32(0xC2B2AE35)
    bits ^= bits >> np.uint32(16)
    return bits


@lru_cache(maxsize=8)
def _table(size: int, key: tuple[int, ...]) -> np.ndarray:
    """Row numbers ride in the low bits of random keys that are sorted.

    Philox' raw bits are fixed for good, while `Generator.permutation` may change with numpy, and a resumed run would
    then repeat some rows and lose others. source: Salmon et al. 2011, Philox.
    """
    bits = np.uint64(max(size - 1, 1).bit_length())
    keys = np.random.Philox(np.random.SeedSequence(list(key))).random_raw(size)
    keys <<= bits
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort()  # all keys differ, so that every sorting algorithm gives one result
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    table = keys.view(np.int64)
    table.flags.writeable = False
    return table
