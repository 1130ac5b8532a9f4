"""How many bytes a rank sends in one optimizer step, axis by axis, counted on shapes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..parallel.recompute import recomputed
from ..parallel.tensor import open_after
from .config import RunConfig
from .models import BuiltModel
from .precision import compute_in
from .preflight_memory import Held, divides_flat, units_of, zero_stage

Sizes = Mapping[str, tuple[int, int]]
"""Module → bytes of its first input and of its output, of one micro-batch."""


@dataclass(frozen=True, kw_only=True)
class TrafficRow:
    """Bytes that the busiest rank sends along one axis in a step, evaluation and techniques left out."""

    axis: str
    bytes: int
    how: str


def traffic(
    config: RunConfig,
    built: BuiltModel,
    held: Held,
    plan: Mapping[str, str],
    stages: Sequence[Sequence[str]],
    rows: int,
) -> tuple[TrafficRow, ...]:
    """The table. held: of the fullest rank; rows: of one micro-batch.

    Counted as rings send: of n bytes over r ranks a gather or a scatter takes n (r - 1) / r, an all-reduce twice that.
    raises: whatever the model raises without numbers, where a pipeline or tensor axis wants its activations.
    """
    parallel = config.parallel
    found = []
    if parallel.context > 1:
        found.append(_context(config, built, rows))
    if parallel.pipeline > 1 or parallel.tensor > 1:
        sizes = module_sizes(config, built, rows)
        if parallel.pipeline > 1:
            found.append(_pipeline(config, sizes, stages))
        if parallel.tensor > 1:
            found.append(_tensor(config, built, sizes, plan))
    if parallel.replicate > 1:
        count = math.ceil(2 * 4 * held.total * _others(parallel.replicate))
        found.append(TrafficRow(axis="replicate", bytes=count, how="all-reduce of the gradients"))
    if parallel.weight_pieces > 1:
        found.append(_shard(config, built, held))
    return tuple(found)


def module_sizes(config: RunConfig, built: BuiltModel, rows: int) -> dict[str, tuple[int, int]]:
    """Bytes that go into and come out of every module that takes and gives one tensor, in the run's precision."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, sizes = copy.deepcopy(built.module), {}

    def note(name: str) -> Any:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if args and isinstance(args[0], Tensor) and isinstance(first, Tensor):
                sizes[name] = (args[0].nbytes, first.nbytes)

        return after

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        device = torch.device("cpu")
        model.to_empty(device=device)
        compute_in(model, config.precision, device)
        model(*built.example(rows))
    return sizes


def _context(config: RunConfig, built: BuiltModel, rows: int) -> TrafficRow:
    parallel = config.parallel
    each = sum(attended_bytes(built, rows)) * (0.5 if config.precision != "fp32" else 1.0)
    gathers = 2 + bool(parallel.recompute) / max(parallel.recompute, 1)
    share = _others(parallel.context) * parallel.microbatches / (parallel.pipeline * parallel.tensor)
    how = "keys and values gathered forward, their gradients scattered backward; as if the stages had equally many"
    return TrafficRow(axis="context", bytes=math.ceil(each * gathers * share), how=how)


def attended_bytes(built: BuiltModel, rows: int) -> list[int]:
    """Bytes of keys and values of each attention of `rows` rows, in float32."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode

    found: list[int] = []

    class Look(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is scaled_dot_product_attention:
                found.append(args[1].nbytes + args[2].nbytes)
            return func(*args, **(kwargs or {}))

    model = copy.deepcopy(built.module)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), Look():
        model.to_empty(device="cpu")
        model(*built.example(rows))
    return found


def _shard(config: RunConfig, built: BuiltModel, held: Held) -> TrafficRow:
    parallel = config.parallel
    each = (
        4 * held.total * (parallel.weight_pieces - 1)
    )  # of one gather or scatter of everything that is held here
    if divides_flat(config):
        return _zero(config, each)
    if parallel.pipeline > 1:
        return TrafficRow(
            axis="shard", bytes=2 * each, how="one gather of the weights, one scatter of gradients"
        )
    whole = sum(p.numel() for p in built.module.parameters())
    units = 1.0 - units_of(built)[1] / whole if parallel.engine == "native" else 0.0
    gathers = parallel.microbatches * (1.0 + units)
    how = (
        f"{parallel.microbatches} × weights gathered in the forward, those of units in the backward too; "
        "one scatter of gradients"
    )
    return TrafficRow(axis="shard", bytes=math.ceil(each * (gathers + 1.0)), how=how)


def _zero(config: RunConfig, each: int) -> TrafficRow:
    stage, pieces = zero_stage(config), config.parallel.microbatches
    half = 0.5 if config.precision != "fp32" and (stage or 0) >= 2 else 1.0
    if stage == 3:
        how = f"{pieces} × weights gathered in forward and backward, gradients scattered"
        return TrafficRow(axis="shard", bytes=math.ceil(each * half * 3 * pieces), how=how)
    scatters = pieces if stage == 2 else 1
    how = f"gradients scattered {scatters} ×, moved weights gathered"
    return TrafficRow(axis="shard", bytes=math.ceil(each * half * (scatters + 1)), how=how)


def _tensor(config: RunConfig, built: BuiltModel, sizes: Sizes, plan: Mapping[str, str]) -> TrafficRow:
    parallel, layout = config.parallel, built.layout
    order = layout.cuts or tuple(name for name, _ in built.module.named_children())
    gathered = set(next(reversed(open_after(built.module, order, dict(plan)).values()), []))
    again = recomputed(built.module, layout, parallel.recompute)
    total = 0
    for name, style in plan.items():
        inner, outer = sizes.get(name, (0, 0))
        twice = 2 if any(name.startswith(f"{block}.") for block in again) else 1
        if style == "row":
            total += 2 * outer * twice
        else:
            total += 2 * inner + (outer * twice if name in gathered else 0)
            if style == "qkv" and name not in gathered:  # exchanged, one rank's part forward and one backward
                total += (1 + twice) * outer / parallel.tensor
    count = math.ceil(total * _others(parallel.tensor) * parallel.microbatches / parallel.pipeline)
    how = f"activations summed: forward behind rows, backward before columns; {parallel.microbatches} micro-batches"
    return TrafficRow(axis="tensor", bytes=count, how=how)


def _pipeline(config: RunConfig, sizes: Sizes, stages: Sequence[Sequence[str]]) -> TrafficRow:
    """The busiest rank sends each stage's output on, and the gradient of what it got back."""
    parallel = config.parallel
    outputs = [sizes.get(members[-1], (0, 0))[1] for members in stages[:-1]]
    forth, back = [*outputs, 0], [0, *outputs]
    each = [a + b for a, b in zip(forth, back, strict=True)]
    from ..parallel.schedules import stages_of

    homes = stages_of(parallel.schedule, parallel.pipeline, len(stages))
    most = max((sum(each[stage] for stage in held) for held in homes), default=0)
    how = f"activations and their gradients of {parallel.microbatches} micro-batches"
    return TrafficRow(axis="pipeline", bytes=most * parallel.microbatches, how=how)


def _others(ranks: int) -> float:
    return (ranks - 1) / ranks
