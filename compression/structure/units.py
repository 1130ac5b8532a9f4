"""What goes together: numbered entries of parameter dims, united where an operation makes them one."""

from __future__ import annotations

import numpy as np

Ids = np.ndarray
"""int64 numbers of entries, in the shape of the dims that they label."""


class Units:
    """Disjoint sets of entries. An entry is one index along one dim of one parameter or buffer.

    Entries in one set must be removed together; a set that is pinned must stay, for a reason that is kept.
    cost: near linear in the number of entries; every step is an array operation.
    """

    def __init__(self) -> None:
        self._parent = np.empty(0, dtype=np.int64)
        self._pins: list[tuple[Ids, str]] = []
        self._marks: dict[str, list[Ids]] = {}
        self._rectangles: list[Ids] = []

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int) -> Ids:
        """[count] fresh entries, each a set of its own."""
        start = len(self._parent)
        fresh = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, fresh])
        return fresh

    def find(self, ids: Ids) -> Ids:
        """The representative of each entry's set, in the shape of ``ids``."""
        roots = self._parent[ids]
        while True:
            further = self._parent[roots]
            if np.array_equal(further, roots):
                break
            roots = further
        self._parent[ids] = roots
        return roots

    def unite(self, left: Ids, right: Ids) -> None:
        """Make the sets of ``left`` and ``right`` one, entry by entry (shapes broadcast)."""
        left, right = np.broadcast_arrays(left, right)
        left, right = left.ravel(), right.ravel()
        while True:
            one, other = self.find(left), self.find(right)
            apart = one != other
            if not apart.any():
                return
            left, right, one, other = left[apart], right[apart], one[apart], other[apart]
            # Larger roots hang below smaller ones; of several links for one root the lowest wins, the rest next time.
            np.minimum.at(self._parent, np.maximum(one, other), np.minimum(one, other))

    def collapse(self, ids: Ids, axis: int) -> Ids:
        """Unite everything along ``axis``; returns ``ids`` without that axis."""
        self.unite(ids.take([0], axis=axis), ids)
        return ids.take(0, axis=axis)

    def pin(self, ids: Ids, reason: str) -> None:
        """These must stay; the first reason given is the one that is told."""
        self._pins.append((ids.ravel(), reason))

    def mark(self, ids: Ids, word: str) -> None:
        """Remember that these took part in ``word`` (such as "heads")."""
        self._marks.setdefault(word, []).append(ids.ravel())

    def keep_rectangular(self, ids: Ids) -> None:
        """Whatever is removed from the dims that ``ids`` labels together, a full block must be left."""
        self._rectangles.append(ids)

    # ── once everything is known

    def settle(self) -> None:
        """Unite what rectangular blocks need: in the end each depends on one of its dims, its longest."""
        changed = True
        while changed:
            changed = False
            for ids in self._rectangles:
                roots = self.find(ids)
                depends = [a for a in range(roots.ndim) if (roots != roots.take([0], axis=a)).any()]
                if len(depends) > 1:
                    kept = max(depends, key=lambda axis: roots.shape[axis])
                    for axis in sorted(set(depends) - {kept}, reverse=True):
                        roots = np.expand_dims(self.collapse(roots, axis), axis)
                    changed = True

    def reasons(self) -> dict[int, str]:
        """Representative → why it must stay, for all that are pinned."""
        told: dict[int, str] = {}
        for ids, reason in self._pins:
            for root in np.unique(self.find(ids)).tolist():
                told.setdefault(root, reason)
        return told

    def marked(self, word: str) -> set[int]:
        """Representatives of everything marked with ``word``."""
        return {root for ids in self._marks.get(word, ()) for root in np.unique(self.find(ids)).tolist()}
