"""What one micro-batch needs beside weights and gradients: a forward, a loss and a backward on shapes alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..dataloading import Source, next_tokens
from ..parallel.recompute import recompute, recomputed
from .config import RunConfig
from .live_bytes import LiveBytes
from .models import BuiltModel
from .precision import compute_in, compute_modules_in, modules_of
from .tasks import task_for

_CPU = torch.device("cpu")


def working_bytes(
    config: RunConfig,
    built: BuiltModel,
    rows: int,
    source: Source | None = None,
    *,
    kept: float = 1.0,
    again: bool = False,
) -> int:
    """The most that a forward and a backward of `rows` rows hold at once beside weights and gradients.

    Activations, the loss, copies in half precision and what a backward holds on the way, with the run's precision and
    recomputation, as the operators of the CPU keep it (the GPU's fused attention keeps as little).
    source: whose columns the loss is taken of; without it the sum of the outputs is the loss.
    kept: share of a parameter's gradient that stays on this rank once it is there.   again: gradients of an earlier
    micro-batch are there from the start.
    raises: whatever the model raises without numbers.   cost: one or two steps without arithmetic.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = copy.deepcopy(built.module)
    names = recomputed(model, built.layout, config.parallel.recompute)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device=_CPU)
        model.train()
        compute_modules_in(model, modules_of(model, config.parallel.precision_by_module), _CPU)
        recompute(model, names, config.parallel.recompute_keep)
        compute_in(model, config.precision, _CPU)
        columns = None if source is None else _columns(source, rows)
        parameters = [p for p in model.parameters() if p.requires_grad]
        with LiveBytes() as live:
            for tensor in (*model.parameters(), *model.buffers()):
                live.count(tensor, 0.0)
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(lambda p: live.count(p.grad, kept))
            for _ in range(1 + again):
                _loss(config, built, model, columns, rows).backward()
    gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    return max(0, round(live.most - kept * gradients))


def _loss(
    config: RunConfig, built: BuiltModel, model: nn.Module, columns: Mapping[str, Tensor] | None, rows: int
) -> Tensor:
    if columns is None:
        return _sum(model(*built.example(rows)))
    task = task_for(built.task)
    inputs: Any = task.inputs(columns)
    outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return task.loss_sum(outputs, columns, None)


def _columns(source: Source, rows: int) -> dict[str, Tensor]:
    """A batch of zeros; rows of lengths of their own are as long as the longest, or as packed rows are."""
    ragged, length = getattr(source, "ragged", None), getattr(source, "row_length", None)
    shapes = {name: info.shape for name, info in source.columns.items()}
    if ragged and length:
        shapes = {name: (length,) if shape == shapes[ragged] else shape for name, shape in shapes.items()}
    zeros = {
        name: torch.zeros((rows, *shape), dtype=source.columns[name].dtype) for name, shape in shapes.items()
    }
    if not ragged or not getattr(source, "packed", False):
        return zeros
    marks = torch.ones((rows, *shapes[ragged]), dtype=torch.int32)
    return next_tokens({ragged: zeros[ragged], "document": marks, "position": marks})


def _sum(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs.float().sum()
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return torch.stack([value.float().sum() for value in values if isinstance(value, Tensor)]).sum()
