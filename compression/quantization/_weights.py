"""Grids of weights on any mesh: ranges over exactly the ranks that hold the parts, and values moved onto them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..run import Run
from ..weight import Weight
from .grid import grid_of, groups_in, off_grid, snap_, spread


def sizes_of(weight: Weight, granularity: str | int) -> dict[int, int]:
    """Dim → size of what there is one of for each tensor, channel or group (see `Run.buffer`)."""
    sizes = {dim: 1 for dim in range(1, len(weight.shape))}
    if granularity == "tensor":
        sizes[0] = 1
    elif granularity != "channel":
        sizes[1] = groups_in(weight.shape[1], int(granularity))
    return sizes


def scale_of(run: Run, weight: Weight, granularity: str | int) -> Tensor:
    """The saved step sizes of this weight: float32 [rows held or 1, groups or 1, 1, …]."""
    return run.buffer(weight, "scale", fill=1.0, dtype=torch.float32, sizes=sizes_of(weight, granularity))


def zero_point_of(run: Run, weight: Weight, granularity: str | int) -> Tensor:
    """The saved zero points of this weight: int32, as `scale_of`."""
    return run.buffer(weight, "zero_point", fill=0, dtype=torch.int32, sizes=sizes_of(weight, granularity))


def renew_grid(run: Run, weight: Weight, granularity: str | int, bits: int, symmetric: bool) -> None:
    """Take the grid of the weight's present range. The same bits on every mesh: only maxima are communicated."""
    _keep(
        run,
        weight,
        granularity,
        *grid_of(*_range(weight, granularity, symmetric), bits, symmetric),
        symmetric,
    )


def search_grid(run: Run, weight: Weight, granularity: str | int, bits: int, symmetric: bool) -> None:
    """Of the grids for shares of the range, in steps of 2 %, take the one with the least squared error.

    Errors are added in float64, so that the choice does not depend on who adds what.
    cost: 36 times the work of `renew_grid` and a few passes more; once a phase.
    """
    low, high = _range(weight, granularity, symmetric)
    least: Tensor | None = None
    scale, zero_point = grid_of(low, high, bits, symmetric)
    for percent in range(100, 28, -2):
        grid = grid_of(low * (percent / 100), high * (percent / 100), bits, symmetric)
        here = [for_each(weight, values, granularity) for values in grid]
        nearest = snap_(weight.local.clone(), here[0], None if symmetric else here[1], bits)  # pyright: ignore
        error = total(weight, nearest.sub_(weight.local).double().square_(), granularity)
        better = error < (torch.full_like(error, float("inf")) if least is None else least)
        least = error if least is None else torch.minimum(least, error)
        scale, zero_point = torch.where(better, grid[0], scale), torch.where(better, grid[1], zero_point)
    _keep(run, weight, granularity, scale, zero_point, symmetric)


def _range(weight: Weight, granularity: str | int, symmetric: bool) -> tuple[Tensor, Tensor]:
    if symmetric:
        high = largest(weight, weight.local.abs(), granularity)
        return -high, high
    return -largest(weight, -weight.local, granularity), largest(weight, weight.local, granularity)


def _keep(
    run: Run, weight: Weight, granularity: str | int, scale: Tensor, zero_point: Tensor, symmetric: bool
) -> None:
    scale_of(run, weight, granularity).copy_(scale)
    if not symmetric:
        zero_point_of(run, weight, granularity).copy_(zero_point)


def largest(weight: Weight, x: Tensor, granularity: str | int) -> Tensor:
    """Largest value of ``x`` (shaped like the local part) in each tensor, channel or group of the whole weight."""
    return _over(weight, x, granularity, "amax")


def total(weight: Weight, x: Tensor, granularity: str | int) -> Tensor:
    """Sum of ``x`` (shaped like the local part) over each tensor, channel or group of the whole weight."""
    return _over(weight, x, granularity, "sum")


def _over(weight: Weight, x: Tensor, granularity: str | int, operation: str) -> Tensor:
    reduce = weight.amax if operation == "amax" else weight.sum
    if granularity == "tensor":
        return reduce(x)
    rest = tuple(range(1, x.ndim))
    if granularity == "channel":
        return reduce(x, rest)
    group, features = int(granularity), weight.shape[1]
    flat = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)  # [rows, features held, kernel]
    flat = flat.amax(2) if operation == "amax" else flat.sum(2)
    parts = flat.new_full(
        (flat.shape[0], groups_in(features, group)), float("-inf") if operation == "amax" else 0.0
    )
    index = (weight.start(1).to(x.device) // group).expand(flat.shape[0], -1)
    parts.scatter_reduce_(1, index, flat, operation, include_self=True)
    shaped = parts.view(
        flat.shape[0], 1, -1, *[1] * (x.ndim - 2)
    )  # dim 1 of size 1: only ranks are left to reduce
    return reduce(shaped, (1,)).squeeze(1)


def for_each(weight: Weight, values: Tensor | None, granularity: str | int) -> Tensor | None:
    """Step sizes or zero points, shaped to go with the local part."""
    if values is None or isinstance(granularity, str):
        return values
    return spread(values, weight.start(1).to(values.device), int(granularity))


def grid_here(
    run: Run, weight: Weight, granularity: str | int, symmetric: bool
) -> tuple[Tensor, Tensor | None]:
    """(scale, zero point or None), shaped to go with the local part."""
    scale = for_each(weight, scale_of(run, weight, granularity), granularity)
    assert scale is not None
    return scale, None if symmetric else for_each(
        weight, zero_point_of(run, weight, granularity), granularity
    )


def project(run: Run, weight: Weight, granularity: str | int, bits: int, symmetric: bool) -> None:
    """Let the model compute with the nearest values on the grid; the dense ones go on learning."""
    scale, zero_point = grid_here(run, weight, granularity, symmetric)
    weight.project(lambda local: snap_(local, scale, zero_point, bits))


def off_here(run: Run, weight: Weight, granularity: str | int, bits: int, symmetric: bool) -> Tensor:
    """How many weights of the local part, read anew from the model, are not exactly on their grid: 0-dim int64."""
    return off_grid(weight.live(), *grid_here(run, weight, granularity, symmetric), bits)
