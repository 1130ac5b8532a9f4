"""Which entries the dims of a tensor stand for, and how operations carry that from inputs to outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .units import Ids, Units


class Factor(NamedTuple):
    """``ids`` label the positions along ``dims`` (ascending) together: ids.shape is their sizes.

    One dim for channels; several where a view has split them, as [batch, tokens, heads, head width] does. A dim
    without a factor is rigid: nothing can be removed from it.
    """

    dims: tuple[int, ...]
    ids: Ids


@dataclass(frozen=True)
class Labelled:
    """The shape of a tensor and its factors, whose dims are disjoint."""

    shape: tuple[int, ...]
    factors: tuple[Factor, ...] = ()

    def at(self, dim: int) -> Factor | None:
        """The factor that labels ``dim``."""
        return next((factor for factor in self.factors if dim in factor.dims), None)


def tidy(units: Units, x: Labelled) -> Labelled:
    """``x`` with representatives for ids, and without dims along which a factor no longer changes."""
    factors = []
    for dims, ids in x.factors:
        ids = units.find(ids)
        for axis in reversed(range(len(dims))):
            first = ids.take([0], axis=axis)
            if ids.shape[axis] == 1 or (len(dims) > 1 and (ids == first).all()):
                ids, dims = first.squeeze(axis), dims[:axis] + dims[axis + 1 :]
        if dims:
            factors.append(Factor(dims, ids))
    return Labelled(x.shape, tuple(factors))


def drop(units: Units, x: Labelled, dims: Sequence[int], reason: str) -> Labelled:
    """``x`` made rigid along ``dims``: a factor with other dims keeps those, one without is pinned."""
    factors = []
    for factor in x.factors:
        kept, ids = factor.dims, factor.ids
        if set(kept) <= set(dims):
            units.pin(ids, reason)
            continue
        for axis in reversed(range(len(kept))):
            if kept[axis] in dims:
                ids, kept = units.collapse(ids, axis), kept[:axis] + kept[axis + 1 :]
        factors.append(Factor(kept, ids))
    return Labelled(x.shape, tuple(factors))


def move(x: Labelled, to: Sequence[int | None], shape: Sequence[int]) -> Labelled:
    """``x`` with dim d renamed to ``to[d]`` in a tensor of ``shape``; factors of dims that go (None) go too."""
    factors = []
    for dims, ids in x.factors:
        names = [to[dim] for dim in dims]
        if None not in names:
            order = np.argsort(np.asarray(names))
            factors.append(Factor(tuple(names[i] for i in order), ids.transpose(order)))  # type: ignore[misc]
    return Labelled(tuple(shape), tuple(factors))


def combine(units: Units, operands: Sequence[Labelled], reason: str) -> Labelled:
    """Operands of equal rank that broadcast against each other, position by position.

    Entries that meet are united. Where one operand is rigid along a dim (and longer than 1), so is the result.
    """
    shape = tuple(max(sizes) for sizes in zip(*(x.shape for x in operands), strict=True))
    factors: list[Factor] = []
    for dims in _components([factor.dims for x in operands for factor in x.factors]):
        ids, stiff = None, set()
        for x in operands:
            own = [factor for factor in x.factors if set(factor.dims) <= set(dims)]
            covered = {dim for factor in own for dim in factor.dims}
            stiff |= {dim for dim in dims if x.shape[dim] > 1 and dim not in covered}
            for factor in own:
                spread = _spread(factor, dims, shape)
                if ids is None:
                    ids = spread
                else:
                    units.unite(ids, spread)
        assert ids is not None
        ids = np.broadcast_to(ids, [shape[dim] for dim in dims])
        factors += drop(units, Labelled(shape, (Factor(dims, ids),)), sorted(stiff), reason).factors
    return tidy(units, Labelled(shape, tuple(factors)))


def _components(parts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Sets of dims joined where they share one, each ascending."""
    joined: list[set[int]] = []
    for part in parts:
        touching = [group for group in joined if group & set(part)]
        joined = [group for group in joined if not group & set(part)]
        joined.append(set(part).union(*touching))
    return [tuple(sorted(group)) for group in joined]


def _spread(factor: Factor, dims: tuple[int, ...], shape: Sequence[int]) -> Ids:
    """The factor's ids as an array over ``dims``, broadcast along those that it does not label."""
    ids = factor.ids.reshape(
        [factor.ids.shape[factor.dims.index(dim)] if dim in factor.dims else 1 for dim in dims]
    )
    return np.broadcast_to(ids, [shape[dim] for dim in dims])


def reshape(units: Units, x: Labelled, shape: Sequence[int], reason: str) -> Labelled:
    """``x`` seen in another ``shape``: dims merge and split as in memory."""
    pieces = _pieces(x.shape, shape)
    touched = [
        [p for p, (before, _) in enumerate(pieces) if set(factor.dims) & set(before)] for factor in x.factors
    ]
    factors = []
    for factor, runs in zip(x.factors, touched, strict=True):
        if not runs or any(touched_by > 1 for touched_by in (sum(p in t for t in touched) for p in runs)):
            units.pin(factor.ids, reason)  # two kinds of entries in one dim: neither can be taken out alone
            continue
        before = tuple(dim for p in runs for dim in pieces[p][0])
        after = tuple(dim for p in runs for dim in pieces[p][1])
        factors.append(Factor(after, _spread(factor, before, x.shape).reshape([shape[d] for d in after])))
    seen = tidy(units, Labelled(tuple(shape), tuple(factors)))
    for factor in seen.factors:
        if len(factor.dims) > 1:
            units.keep_rectangular(factor.ids)
    return seen


def _pieces(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The smallest runs of dims of ``old`` and ``new`` that hold the same number of elements."""
    left = [dim for dim in range(len(old)) if old[dim] != 1]
    right = [dim for dim in range(len(new)) if new[dim] != 1]
    pieces, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        first_i, first_j = i, j
        held, wanted = old[left[i]], new[right[j]]
        i, j = i + 1, j + 1
        while held != wanted:
            if held < wanted:
                held, i = held * old[left[i]], i + 1
            else:
                wanted, j = wanted * new[right[j]], j + 1
        pieces.append((tuple(left[first_i:i]), tuple(right[first_j:j])))
    return pieces
