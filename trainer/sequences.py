"""Batches on the context axis: each rank's piece of every sequence, with positions and masks of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..dataloading import Batch
from ..errors import DataError
from ..parallel import Mesh
from ..parallel.engine import Inputs
from ..parallel.places import places_of
from .tasks import Columns, Task

_WHOLE = "attention_mask"  # keys of other pieces are seen too


def cut_batch(batch: Batch, task: Task, mesh: Mesh) -> Batch:
    """This context rank's tokens of a data rank's rows; the batch itself where sequences are not cut.

    Columns [rows, T, …] of as many tokens as the model's input lose those of other ranks, targets are aligned first.
    raises: DataError where the context axis does not divide the tokens.
    """
    if mesh.context == 1:
        return batch
    columns = task.aligned(batch.columns)
    length = _tokens(task.inputs(columns)).shape[1]
    if length % mesh.context:
        raise DataError(
            f"parallel.context={mesh.context} does not divide the {length} tokens of a row; give rows of a multiple "
            "of it, or change the degree"
        )
    places = places_of(mesh.coordinates["context"], mesh.context, length // mesh.context)
    cut = {
        name: column.index_select(1, places.to(column.device))
        if name != _WHOLE and column.ndim > 1 and column.shape[1] == length
        else column
        for name, column in columns.items()
    }
    return replace(batch, columns=cut)


def _tokens(inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    return inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))


def inputs_on(task: Task, attention: Literal["causal", "full"] | None, mesh: Mesh) -> Inputs:
    """The task's inputs for a model on `mesh`: of a piece it is told the positions, and its mask is over all keys.

    attention: as `Layout.attention`.   Keyword inputs get position_ids [rows, L], and their attention_mask [rows, T]
    becomes bool [rows, 1, L or 1, T].
    """
    if mesh.context == 1:
        return task.inputs
    index = mesh.coordinates["context"]

    def inputs(columns: Columns) -> Tensor | dict[str, Tensor]:
        found = task.inputs(columns)
        if isinstance(found, Tensor):
            return found
        tokens = _tokens(found)
        rows, length = tokens.shape[:2]
        places = places_of(index, mesh.context, length, tokens.device)
        found.setdefault("position_ids", places.expand(rows, length))
        if _WHOLE in found:
            seen = found[_WHOLE].bool()[:, None, None, :]
            if attention == "causal":
                seen = seen & (torch.arange(seen.shape[-1], device=tokens.device) <= places[:, None])
            found[_WHOLE] = seen
        return found

    return inputs
