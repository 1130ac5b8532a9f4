"""From united entries to groups: entries with the same members are units of one group."""

from __future__ import annotations

import numpy as np
import torch

from .flow import Flow, Owner
from .graph import Group, Kind, Member, Role

_WORDS = ("heads", "residual", "inner", "linear", "convolution")


def groups_of(flow: Flow) -> list[Group]:
    """All groups, in the order in which the model meets the layers that produce them."""
    owners = flow.owners
    roots = [flow.units.find(owner.ids) for owner in owners]
    reasons = flow.units.reasons()
    signatures = _signatures(len(flow.units), roots, reasons)
    together: dict[int, list[int]] = {}  # signature → owners
    for number, own in enumerate(roots):
        for signature in np.unique(signatures[own]).tolist():
            together.setdefault(signature, []).append(number)
    marks = {word: flow.units.marked(word) for word in _WORDS}
    groups, names = [], set()
    for signature, numbers in together.items():
        members = _members(flow, signature, numbers, roots, signatures)
        first = int(roots[numbers[0]][signatures[roots[numbers[0]]] == signature][0])
        marked = {word for word, found in marks.items() if first in found}
        if "inner" in marked or all(member.role == "buffer" for member in members):
            continue
        name = _unique(_name(members), names)
        groups.append(Group(name=name, kind=_kind(marked), members=members, fixed=reasons.get(first)))
    return groups


def _signatures(count: int, roots: list[np.ndarray], reasons: dict[int, str]) -> np.ndarray:
    """[entries] uint64: equal for two sets that have as many entries in each owner, and are pinned alike.

    A sum of a random number for each entry's owner: two different sums of 64 bits do not meet by chance.
    """
    random = np.random.default_rng(0)
    signatures = np.zeros(count, dtype=np.uint64)
    for own in roots:
        np.add.at(signatures, own, random.integers(1, 2**63, dtype=np.uint64))
    salts = {reason: random.integers(1, 2**63, dtype=np.uint64) for reason in sorted(set(reasons.values()))}
    if reasons:
        np.add.at(signatures, list(reasons), np.array([salts[reason] for reason in reasons.values()]))
    return signatures


def _members(
    flow: Flow, signature: int, numbers: list[int], roots: list[np.ndarray], signatures: np.ndarray
) -> tuple[Member, ...]:
    """The group's entries in each owner; units are numbered as the first producer counts them."""
    numbers = sorted(numbers, key=lambda n: _rank(flow, flow.owners[n]))
    order: np.ndarray | None = None
    members = []
    for number in numbers:
        owner, own = flow.owners[number], roots[number]
        places = np.flatnonzero(signatures[own] == signature)
        if order is None:
            order = own[places][np.sort(np.unique(own[places], return_index=True)[1])]
            rank = np.zeros(len(signatures), dtype=np.int64)
            rank[order] = np.arange(len(order))
        assert order is not None
        by_unit = places[np.argsort(rank[own[places]], kind="stable")].reshape(len(order), -1)
        members.append(
            Member(name=owner.name, dim=owner.dim, role=_role(flow, owner), index=torch.from_numpy(by_unit))
        )
    return tuple(members)


def _role(flow: Flow, owner: Owner) -> Role:
    return "buffer" if owner.buffer else flow.roles.get((owner.name, owner.dim), "out")  # type: ignore[return-value]


def _rank(flow: Flow, owner: Owner) -> tuple[bool, bool]:
    """Producers first, of them those with more dims than a vector; else in order of use."""
    parameter_dims = sum(other.name == owner.name for other in flow.owners)
    return _role(flow, owner) != "out", parameter_dims < 2


def _name(members: tuple[Member, ...]) -> str:
    """The module of the first producer, or "module.inputs" where the model's parameters only consume the units."""
    first = members[0]
    module, _, leaf = first.name.rpartition(".")
    base = module if leaf == "weight" and module else first.name
    return f"{base}.inputs" if first.role == "in" else base


def _unique(name: str, names: set[str]) -> str:
    number, unique = 1, name
    while unique in names:
        number += 1
        unique = f"{name}#{number}"
    names.add(unique)
    return unique


def _kind(marked: set[str]) -> Kind:
    if "heads" in marked:
        return "heads"
    if {"residual", "linear"} <= marked:
        return "width"
    return "channels" if "convolution" in marked else "neurons"
