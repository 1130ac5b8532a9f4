"""Where a local part lies in the whole parameter, and state that is smaller than its weight along some dims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement


def is_divided(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether ``tensor`` is a DTensor. By its attribute: importing the class costs a run without any a second."""
    return hasattr(tensor, "placements")


def positions(parameter: Tensor, dim: int) -> Tensor:
    """Indices along ``dim`` of the whole parameter that the local part holds, ascending (int64; maybe none).

    Strided shards (FSDP over a dim that tensor parallelism has cut already) are cut last, as they were made.
    """
    here = torch.arange(parameter.shape[dim])
    if not is_divided(parameter):
        return here
    from torch.distributed.tensor import Shard

    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    cuts = [(axis, p) for axis, p in enumerate(parameter.placements) if _cuts(p, dim)]
    for axis, _ in sorted(cuts, key=lambda cut: type(cut[1]) is not Shard):
        pieces = torch.chunk(here, mesh.size(axis)) if len(here) else ()
        index = coordinate[axis]
        here = pieces[index] if index < len(pieces) else here[:0]
    return here


def _cuts(placement: Placement, dim: int) -> bool:
    return not placement.is_replicate() and getattr(placement, "dim", None) == dim


class Reduced:
    """State of one weight that has another size along some dims, whole there on every rank.

    name:  that of the weight.   sizes: dim → size of the state along it (1: one value for all of them).
    """

    def __init__(self, name: str, parameter: Tensor, sizes: Mapping[int, int]) -> None:
        self.name, self.sizes = name, dict(sizes)
        self._parameter = parameter

    def shape(self, local: Tensor) -> tuple[int, ...]:
        """Local shape of the state, for a weight whose local part is ``local``."""
        return tuple(self.sizes.get(dim, size) for dim, size in enumerate(local.shape))

    def wrap(self, local: Tensor) -> Tensor:
        """``local`` placed like the weight along the other dims, equal everywhere along these."""
        like = self._parameter
        if not is_divided(like):
            return local
        from torch.distributed.tensor import DTensor, Replicate

        placements = [Replicate() if getattr(p, "dim", None) in self.sizes else p for p in like.placements]
        shape = torch.Size(self.sizes.get(dim, size) for dim, size in enumerate(like.shape))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            local, like.device_mesh, placements, run_check=False, shape=shape, stride=stride
        )
