"""Pairs of modules, of a student and of its teacher: what may be compared, and the mean over the places of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ..run import Run

Shapes = Mapping[str, Sequence[int]]
"""Module → shape of its output, the rows first."""


def check_pairs(layers: Mapping[str, str], weight: float) -> None:
    """raises: ValueError for no pair at all, or a weight that would be no distillation."""
    if not layers:
        raise ValueError("layers={}: want at least one pair, {student module: teacher module}")
    if not weight > 0.0:
        raise ValueError(f"weight={weight}: want more than 0")


def width(shape: Sequence[int]) -> int:
    """Of an output [rows, W], [rows, tokens, W] or [rows, channels, height, width]."""
    return shape[1] if len(shape) == 4 else shape[-1]


def places(shape: Sequence[int]) -> tuple[int, ...]:
    """Of an output: its dims but for rows and width."""
    return tuple(shape[2:] if len(shape) == 4 else shape[1:-1])


def width_last(x: Tensor) -> Tensor:
    """[rows, …, W]: the channels of [rows, C, H, W] are its width."""
    return x.movedim(1, -1) if x.ndim == 4 else x


def tensor_of(output: Any) -> Tensor:
    """A module's output; of several, the first."""
    return output[0] if isinstance(output, tuple | list) else output


def with_term(run: Run, output: Any, term: Tensor, name: str) -> Any:
    """A module's output whose backward carries the gradient of `term` too; see `Run.attach`.

    A copy: what is attached is a view, which no module after it could change in place (an activation may).
    """
    tensor = run.attach(tensor_of(output), term, name=name).clone()
    return type(output)((tensor, *output[1:])) if isinstance(output, tuple | list) else tensor


def refuse_part(x: Tensor, name: str, wanted: int | None) -> None:
    """raises: ConfigError where `x`, the output of module `name`, is not `wanted` wide as in the whole model."""
    divided = hasattr(x, "placements") or (wanted is not None and width(x.shape) != wanted)
    if divided:
        raise ConfigError(
            f"distillation: here {name} gives {list(x.shape)}, not {wanted or 'all'} features: the tensor axis divides "
            "them; name the module after which they are whole again (after the row-divided layer), or use tensor: 1"
        )


def real_places(run: Run, places: Sequence[int]) -> Tensor | None:
    """bool [rows, T] of a column ``attention_mask`` that fits rows of `places` [rows, T]; None: all are real.

    places: those that are here, which may be a piece of each row's; returned are those of the whole row.
    """
    mask = run.now.columns.get("attention_mask")
    if mask is None or len(places) != 2:
        return None
    fits = tuple(mask.shape) == (places[0], places[1] * run.piece.pieces)
    return mask.bool() if fits else None


def mean_over_places(run: Run, each: Tensor) -> Tensor:
    """Values [rows, …] → [rows]: the mean over a row's real places, 0 for a row that is padding.

    A mean for each row, not over all tokens: it needs no count over ranks, and a long row weighs as a short one.
    Where a rank has pieces of rows, its share of that mean: what its places add to it.
    raises: ConfigError for rows without places, [rows], where ranks have pieces of rows.
    """
    pieces, valid = run.piece.pieces, run.now.valid
    if each.ndim > 1:
        real = real_places(run, each.shape)
        if real is None:
            each = each.flatten(1).mean(1) / pieces
        else:
            count = real.sum(1).clamp_min(1)
            here = real.index_select(1, run.piece.places(each.shape[1]).to(real.device))
            each = torch.where(here, each, 0.0).sum(1) / count
    elif pieces > 1:
        raise ConfigError(
            "distillation: a module that gives one vector for a row, where parallel.context gives each rank a piece of "
            "it; name modules that give one for each token, or use context: 1"
        )
    return each if valid is None else torch.where(valid, each, 0.0)
