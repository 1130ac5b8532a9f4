"""What tracing found: groups of units that go together, blocks that may go as a whole, and what both cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError
from .flow import Constant, Step
from .labels import Labelled
from .units import Ids, Units

Kind = Literal["channels", "neurons", "heads", "width"]
Role = Literal["out", "in", "scale", "buffer"]
Kept = Mapping[str, Sequence[int]]
"""Group name → ascending numbers of the units that stay; groups that are not named stay whole."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """The entries along one dim of one parameter or buffer that belong to a group's units."""

    name: str
    """Parameter or buffer; of tied ones the first name."""
    dim: int
    role: Role
    """out: produces the units; in: consumes them; scale: scale and shift of a norm or a gate; buffer: statistics."""
    index: Tensor
    """[units, entries of one unit], int64: where along ``dim`` each unit is."""

    def indices(self, units: Sequence[int] | Tensor) -> Tensor:
        """Ascending positions along ``dim`` of these units: [len(units) × entries of one unit], int64."""
        return self.index[torch.as_tensor(units, dtype=torch.long)].flatten().sort().values


@dataclass(frozen=True, kw_only=True)
class Group:
    """Units of which each is removed from all members at once, or not at all."""

    name: str
    kind: Kind
    """channels of convolutions; neurons: features between linear layers; heads: of attention (key-value heads with
    their query heads); width: of a residual stream that linear layers or embeddings write to."""
    members: tuple[Member, ...]
    fixed: str | None = None
    """Why no unit may go: the operation and module that need all of them. None where units may go."""

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.members[0].index)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A module with a residual path past it: without it, what comes in goes on unchanged."""

    name: str
    parameters: int
    """Number of elements of the parameters that nothing outside it uses."""
    returns: Literal["tensor", "tuple", "list"]
    """What its forward gives: the stream itself, or a sequence whose first item it is."""


@dataclass(kw_only=True)
class Graph:
    """Made by `trace`. Group names are those of the layers that produce the units."""

    groups: list[Group]
    blocks: list[Block]
    units: Units = field(repr=False)
    ids: dict[tuple[str, int], Ids] = field(repr=False)
    """(parameter or buffer, dim) → its entries."""
    steps: list[Step] = field(repr=False)
    constants: list[Constant] = field(repr=False)
    example: Any = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    """Of all parameters and buffers."""
    parameters: tuple[str, ...] = field(repr=False)
    """Names of the parameters, tied ones once."""

    def group(self, name: str) -> Group:
        """raises: ConfigError for a name that is no group."""
        for group in self.groups:
            if group.name == name:
                return group
        raise ConfigError(
            f"structure: {name!r} is no group of this model; groups: {', '.join(g.name for g in self.groups)}"
        )

    def free(self, kind: Kind | None = None) -> list[Group]:
        """Groups from which units may go, of one kind or of any."""
        return [g for g in self.groups if g.fixed is None and g.size > 1 and kind in (None, g.kind)]

    def alive(self, kept: Kept) -> np.ndarray:
        """[entries] bool: which stay. raises: ConfigError for a fixed group, wrong numbers or nothing left."""
        alive = np.ones(len(self.units), dtype=bool)
        for name, units in kept.items():
            group = self.group(name)
            stay = check_units(group, units)
            member = group.members[0]
            gone = np.setdiff1d(np.arange(group.size), stay)
            roots = self.units.find(self.ids[member.name, member.dim][member.index[:, 0].numpy()])
            alive[roots[gone]] = False
        return alive[self.units.find(np.arange(len(alive)))]

    def removed(self, kept: Kept) -> dict[tuple[str, int], np.ndarray]:
        """(parameter or buffer, dim) → ascending positions that stay, for the dims that shrink."""
        alive = self.alive(kept)
        stays = {key: alive[ids] for key, ids in self.ids.items()}
        return {key: np.flatnonzero(mask) for key, mask in stays.items() if not mask.all()}

    def shapes_of(self, kept: Kept) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters and buffers that change."""
        shapes: dict[str, list[int]] = {}
        for (name, dim), positions in self.removed(kept).items():
            shapes.setdefault(name, list(self.shapes[name]))[dim] = len(positions)
        return {name: tuple(shape) for name, shape in shapes.items()}


def check_units(group: Group, units: Sequence[int]) -> np.ndarray:
    """``units`` as an array. raises: ConfigError where they are no ascending numbers of this group's units."""
    stay = np.asarray(units, dtype=np.int64)
    if stay.ndim != 1 or not len(stay) or stay[0] < 0 or stay[-1] >= group.size or (np.diff(stay) <= 0).any():
        raise ConfigError(
            f"structure: the units to keep of {group.name!r} must be ascending numbers from 0 to {group.size - 1},"
            f" at least one; given {stay.tolist()[:20]}"
        )
    if group.fixed is not None and len(stay) < group.size:
        raise ConfigError(f"structure: nothing can be removed from {group.name!r}: {group.fixed}")
    return stay


def sizes_left(x: Labelled, alive: np.ndarray) -> tuple[int, ...] | None:
    """The shape of ``x`` once only ``alive`` entries are left; None where that is no full block."""
    shape = list(x.shape)
    for dims, ids in x.factors:
        mask = alive[ids]
        for axis, dim in enumerate(dims):
            others = tuple(a for a in range(len(dims)) if a != axis)
            shape[dim] = int(mask.any(axis=others).sum()) if others else int(mask.sum())
        if int(mask.sum()) != np.prod([shape[dim] for dim in dims]):
            return None
    return tuple(shape)
