"""Grids of quantized weights: buffers that no forward pass reads, and that must go with the rows they are for."""

from __future__ import annotations

from torch import Tensor

from .flow import Flow, Owner
from .units import Ids

_GRIDS = ("weight_scale", "weight_zero_point")


def follow_grids(flow: Flow) -> None:
    """Unite the grid of each quantized layer with its weight, dim by dim.

    Where a scale serves a run of inputs, those stay: the run would end elsewhere once some are gone.
    """
    names = {id(parameter): name for name, parameter in flow.model.named_parameters()}
    ids = {(owner.name, owner.dim): owner.ids for owner in flow.owners}
    for module_name, module in flow.model.named_modules():
        weight = module._parameters.get("weight")
        for leaf in _GRIDS:
            grid = module._buffers.get(leaf)
            if weight is not None and grid is not None and grid.ndim == weight.ndim:
                _follow(flow, f"{module_name}.{leaf}".lstrip("."), grid, names[id(weight)], weight, ids)


def _follow(
    flow: Flow, name: str, grid: Tensor, weight_name: str, weight: Tensor, ids: dict[tuple[str, int], Ids]
) -> None:
    for dim in range(grid.ndim):
        own = ids.get((weight_name, dim))
        if grid.shape[dim] == 1 or own is None:
            continue
        if grid.shape[dim] == weight.shape[dim]:
            fresh = flow.units.new(grid.shape[dim])
            flow.units.unite(own, fresh)
            flow.owners.append(Owner(name=name, dim=dim, ids=fresh, buffer=True))
        else:
            flow.units.pin(own, f"{name}: one scale serves a run of inputs")
