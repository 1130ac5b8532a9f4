"""What a unit is worth: from the weights, from the scales, and from what was gathered while training."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ..structure import Graph, Group, Member

Tensors = Mapping[str, Tensor]
"""Parameter name → whole tensor."""


def weight_scores(group: Group, tensors: Tensors, norm: int) -> Tensor:
    """[units] float64: L1 or L2 norm of all weights that produce each unit (of what reads it, where none do).

    source: Li et al. 2017, arXiv:1608.08710, section 3.1 (L1 of a filter); for coupled layers their sum.
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in _matrices(group, tensors, "out") or _matrices(group, tensors, "in"):
        weight = tensors[member.name].detach().double()
        powers = weight.abs() if norm == 1 else weight.square()
        dims = [d for d in range(weight.ndim) if d != member.dim]
        total += by_unit(member, powers.sum(dims))
    return total if norm == 1 else total.sqrt()


def scale_scores(group: Group, tensors: Tensors, names: Collection[str]) -> Tensor | None:
    """[units] float64: mean |scale| over those of the group's scales that ``names`` has; None where it has none."""
    members = [m for m in group.members if m.role == "scale" and m.name in names]
    if not members:
        return None
    values = [by_unit(m, tensors[m.name].detach().double().abs()) for m in members]
    return torch.stack(values).mean(dim=0)


def gathered_scores(group: Group, gathered: Tensors, role: str) -> Tensor | None:
    """[units] float64: what was gathered for each row (role ``out``) or column (``in``), summed over the unit's.

    gathered: parameter → a vector along one dim of it, size 1 along the others.
    returns: None where nothing was gathered for this group.
    """
    total, found = torch.zeros(group.size, dtype=torch.float64), False
    for member in group.members:
        values = gathered.get(member.name)
        if member.role == role and values is not None and values.numel() == values.shape[member.dim]:
            total += by_unit(member, values.double().flatten())
            found = True
    return total if found else None


def energy_scores(group: Group, tensors: Tensors, energy: Tensors) -> Tensor | None:
    """[units] float64: √Σ E[x²] · ‖weights that read x‖² over all features x that the unit gives to later layers.

    energy: reading parameter → E[x²] of its inputs.   returns: None where nothing that reads this group was seen.
    source: the score |weight| · ‖x‖ of Sun et al. 2024, arXiv:2306.11695, taken together over all weights of a unit.
    """
    total = gathered_scores(group, brought(tensors, energy), "in")
    return None if total is None else total.sqrt()


def block_scores(
    graph: Graph, score: str, tensors: Tensors, gathered: Tensors, scales: Collection[str]
) -> Tensor:
    """[blocks] float64: what whole blocks are worth, by the same words as units, over all weights inside.

    l1, l2: mean |w| and root mean square, as blocks of other sizes stand in one ranking.
    """
    if score == "activation":
        gathered = brought(tensors, gathered)
    values = []
    for block in graph.blocks:
        inside = [name for name in tensors if name.startswith(f"{block.name}.")]
        chosen = {
            "l1": [tensors[n].detach().double().abs().flatten() for n in inside if tensors[n].ndim > 1],
            "l2": [tensors[n].detach().double().square().flatten() for n in inside if tensors[n].ndim > 1],
            "scale": [tensors[n].detach().double().abs() for n in inside if n in scales],
        }.get(score, [gathered[n].double().sum().view(1) for n in inside if n in gathered])
        value = torch.cat(chosen) if chosen else torch.zeros(1, dtype=torch.float64)
        value = value.mean() if score in ("l1", "l2", "scale") else value.sum()
        values.append(value.sqrt() if score in ("l2", "activation") else value)
    return torch.stack(values)


def brought(tensors: Tensors, energy: Tensors) -> dict[str, Tensor]:
    """Reading parameter → E[x²] · ‖weights that read x‖² of each of its inputs x."""
    found = {}
    for name, means in energy.items():
        others = [d for d in range(means.ndim) if means.shape[d] == 1]
        found[name] = means.double() * tensors[name].detach().double().square().sum(others, keepdim=True)
    return found


def makers(group: Group) -> set[str]:
    """Names of the parameters that produce the group's units."""
    return {m.name for m in group.members if m.role == "out"}


def by_unit(member: Member, values: Tensor) -> Tensor:
    """Sum of ``values`` [entries along the member's dim] over the entries of each unit: [units]."""
    return values[member.index].sum(dim=1)


def _matrices(group: Group, tensors: Tensors, role: str) -> list[Member]:
    """The group's members of two or more dims in that role."""
    return [m for m in group.members if m.role == role and m.name in tensors and tensors[m.name].ndim >= 2]
