"""Norms of groups of weights that the mesh may cut: rows, columns, blocks of neighbouring ones (heads)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError
from ..weight import Weight


def group_norms(weight: Weight, dim: int, size: int) -> Tensor:
    """Euclidean norm of the whole group that each entry along ``dim`` belongs to, over all its parts.

    size: neighbouring entries along ``dim`` that form one group.
    returns: [1, …, local entries along dim, …, 1].
    raises: ConfigError where ``size`` does not divide the dim.
    """
    others = [d for d in range(len(weight.shape)) if d != dim]
    if size == 1:
        return weight.sum(weight.local.square(), others).sqrt()
    if weight.shape[dim] % size:
        raise ConfigError(
            f"pruning.sparsity_penalty.group_size={size}: {weight.name} has {weight.shape[dim]} entries along dim "
            f"{dim}, which that does not divide; want a size that does, or match to leave {weight.name} out"
        )
    block = weight.start(dim) // size  # [local entries]: the mesh may cut a block in the middle
    square = weight.local.square()
    entry = square.sum(dim=others) if others else square
    blocks = entry.new_zeros(weight.shape[dim] // size).index_add_(0, block, entry)
    norms = weight.add_over_parts(blocks).sqrt()[block]
    return norms.reshape([-1 if d == dim else 1 for d in range(len(weight.shape))])


def group_elements(weight: Weight, dim: int, size: int) -> int:
    """Weights in one group."""
    return weight.shape.numel() // max(weight.shape[dim], 1) * size


def soft_threshold(weight: Tensor, amount: float) -> Tensor:
    """The proximal map of ``amount · ‖·‖₁``: move towards zero by ``amount``, stop exactly there. Any shape."""
    return torch.nn.functional.softshrink(weight, amount)


def group_factor(norms: Tensor, amount: float) -> Tensor:
    """Factor of each group under the proximal map of ``amount · ‖·‖₂``: 0 where the norm is at most ``amount``."""
    return (1.0 - amount / norms.clamp_min(1e-38)).clamp_min(0.0)
