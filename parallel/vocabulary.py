"""Cross-entropy of logits whose classes are divided over the tensor axis: they are never gathered."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def split_cross_entropy(logits: Any, targets: Tensor, ignored: int) -> Tensor:
    """Cross-entropy summed over the items, computed in float32 or wider; the same number on all ranks of the axis.

    logits:  a DTensor [N, V] divided over V.   targets: [N], plain; `ignored` is no item.
    returns: 0-d.   cost: all-reduces of N and of 2 · N numbers, where gathering would move N · V.
    """
    mesh = logits.device_mesh
    local = logits.to_local()
    wide = local.to(torch.promote_types(local.dtype, torch.float32))
    size = -(-logits.shape[-1] // mesh.size())  # all parts but the last have so many classes
    return _SplitCrossEntropy.apply(wide, targets, mesh.get_local_rank() * size, ignored, mesh.get_group())  # pyright: ignore[reportReturnType]


class _SplitCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, start: int, ignored: int, group: dist.ProcessGroup
    ) -> Tensor:
        most = logits.amax(-1) if logits.shape[-1] else logits.new_full(logits.shape[:-1], float("-inf"))
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
        shifted = logits - most[:, None]
        real = targets != ignored
        here = real & (targets >= start) & (targets < start + logits.shape[-1])
        rows = torch.arange(len(targets), device=targets.device)[here]
        columns = targets[here] - start
        powers = shifted.exp()
        both = torch.stack(
            (powers.sum(-1), torch.zeros_like(most))
        )  # of each item: all powers, and its target's logit
        both[1, rows] = shifted[rows, columns]
        dist.all_reduce(both, group=group)
        ctx.save_for_backward(powers / both[0][:, None], real, rows, columns)
        return ((both[0].log() - both[1]) * real).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        shares, real, rows, columns = ctx.saved_tensors
        given = shares * real[:, None]
        given[rows, columns] -= 1.0
        return given * gradients[0], None, None, None, None
