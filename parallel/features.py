"""The whole output of a layer whose features the tensor axis divides, for whoever looks at it from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class _Divided:
    """matrices: how many lie beside each other in the output, a part of each on every rank."""

    mesh: DeviceMesh
    matrices: int


_divided: WeakKeyDictionary[nn.Module, _Divided] = WeakKeyDictionary()


def note_divided(layer: nn.Module, mesh: DeviceMesh, matrices: int = 1) -> None:
    """From now on `whole_features` knows that `layer` gives a part of its features on each rank of `mesh`."""
    _divided[layer] = _Divided(mesh, matrices)


def whole_features(layer: nn.Module, output: Tensor) -> Tensor:
    """What `layer` would give undivided: [.., W/n] → [.., W], with gradients; others' outputs as they are.

    All ranks of the axis must do the same with it: the gradient of a rank's part is what the rank itself has for it.
    cost: one all-gather of the output.
    """
    found = _divided.get(layer)
    if found is None:
        return output
    whole: Any = _Whole.apply(output.unflatten(-1, (found.matrices, -1)), found.mesh)
    return whole.flatten(-2)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.rank, ctx.ranks = mesh.get_local_rank(), mesh.size()
        x = x.contiguous()
        found = [torch.empty_like(x) for _ in range(ctx.ranks)]
        dist.all_gather(found, x, group=mesh.get_group())
        return torch.cat(found, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].chunk(ctx.ranks, dim=-1)[ctx.rank], None
