"""How much memory a rank will hold, in a table that says where each number comes from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..parallel.recompute import recomputed
from ..parallel.schedules import SCHEDULES, stages_of
from ..parallel.tensor import cut_dim
from .config import RunConfig
from .models import BuiltModel

Matches = Sequence[Sequence[tuple[float, Sequence[str]]]]
"""Per phase, per technique: (bytes a weight, names of the parameters that it matches)."""


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Bytes on the rank that holds most of the model, and how they were counted."""

    what: str
    bytes: int
    where: Literal["device", "host"] = "device"
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Parameter → elements on the rank that holds most, and the bytes of its buffers."""

    elements: Mapping[str, int]
    buffer_bytes: int

    @property
    def total(self) -> int:
        """All elements."""
        return sum(self.elements.values())


def held_by_fullest_rank(
    config: RunConfig, built: BuiltModel, plan: Mapping[str, str], stages: Sequence[Sequence[str]]
) -> Held:
    """What the fullest rank keeps. plan: divided modules; stages: their modules, none: all is one stage."""
    parallel = config.parallel
    homes = stages_of(parallel.schedule, parallel.pipeline, len(stages)) if stages else []
    mine = [[name for stage in held for name in stages[stage]] for held in homes]
    ranks = [_part(built, members) for members in mine] if stages else [_part(built, None)]
    local = [
        {name: _local(name, p, built.module, config, plan) for name, p in parameters.items()}
        for parameters, _ in ranks
    ]
    fullest = max(range(len(ranks)), key=lambda rank: sum(local[rank].values()))
    return Held(elements=local[fullest], buffer_bytes=_size(ranks[fullest][1].values()))


def _part(built: BuiltModel, members: list[str] | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    module, links = built.module, built.layout.links

    def inside(name: str) -> bool:
        if members is None:
            return True
        if not built.layout.order and links is not None and name in links.users:
            return any(links.names[user] in members for user in links.users[name])
        return any(name.startswith(f"{member}.") or name == member for member in members)

    found: dict[
        int, tuple[str, Tensor]
    ] = {}  # a tied parameter counts on each stage that computes with it, once
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if inside(name):
            found.setdefault(id(parameter), (name, parameter))
    return dict(found.values()), {name: b for name, b in module.named_buffers() if inside(name)}


def _local(
    name: str, parameter: Tensor, module: nn.Module, config: RunConfig, plan: Mapping[str, str]
) -> int:
    """Elements on the first rank: FSDP2 deals whole rows, the first ranks' shards are the longest; ZeRO elements."""
    shard, tensor = config.parallel.weight_pieces, config.parallel.tensor
    owner = name.rpartition(".")[0]
    shape, divided = list(parameter.shape), plan.get(owner)
    if tensor > 1 and divided is not None and not (divided == "row" and len(shape) < 2):
        # A row-divided layer's bias is whole.
        shape[cut_dim(module.get_submodule(owner), divided) if len(shape) > 1 else 0] //= tensor
    if shard == 1:
        return math.prod(shape)
    if config.parallel.engine == "deepspeed" or not shape:
        return math.ceil(math.prod(shape) / shard)
    return math.ceil(shape[0] / shard) * math.prod(shape[1:])


def _size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def moment_bytes(config: RunConfig) -> int:
    """Bytes of optimizer state a weight, in the phase that has most."""
    used = [config.optimizer_of(phase) for phase in config.phases]
    return max(8 if one.name != "sgd" else 4 if one.momentum else 0 for one in used)


def technique_bytes(matches: Matches, elements: Mapping[str, int]) -> int:
    """Bytes that techniques keep beside the weights, in the phase that has most."""
    return max(
        (
            math.ceil(sum(each * sum(elements.get(name, 0) for name in names) for each, names in phase))
            for phase in matches
        ),
        default=0,
    )


def checkpoint_bytes(config: RunConfig, module: nn.Module, matches: Matches) -> int:
    """One checkpoint of the whole run on disk: weights, buffers, moments, what techniques remember."""
    elements = {name: p.numel() for name, p in module.named_parameters()}
    each = 4 + moment_bytes(config)
    return sum(elements.values()) * each + _size(module.buffers()) + technique_bytes(matches, elements)


def estimate(
    config: RunConfig, built: BuiltModel, held: Held, matches: Matches, activations: int | None
) -> tuple[MemoryRow, ...]:
    """The table of one rank. activations: bytes of one micro-batch through the whole model, if known."""
    parallel, count = config.parallel, held.total
    moments, techniques = count * moment_bytes(config), technique_bytes(matches, held.elements)
    weights = 4 * count + held.buffer_bytes
    place: Any = {"where": "host" if parallel.offload else "device"}
    masks = "masks, dense copies: the phase that has most"
    rows = [
        MemoryRow(what="weights and buffers", bytes=weights, how=f"{count:,} weights × 4 bytes", **place),
        MemoryRow(what="gradients", bytes=4 * count, how="4 bytes a weight", **place),
        MemoryRow(
            what="optimizer moments", bytes=moments, how=f"{moment_bytes(config)} bytes a weight", **place
        ),
        MemoryRow(what="techniques", bytes=techniques, how=masks, **place),
    ]
    rows += _of_engine(config, built, held)
    if config.precision != "fp32" and (activations is None or parallel.pipeline > 1):
        rows.append(MemoryRow(what="half-precision copies", bytes=2 * count, how="made anew in each forward"))
    if activations is not None:
        share, how = in_flight(config)
        rows.append(MemoryRow(what="activations", bytes=math.ceil(activations * share), how=how))
    if config.checkpoint.asynchronous:
        staging = weights + moments + techniques
        rows.append(
            MemoryRow(what="checkpoint staging", bytes=staging, where="host", how="one copy, written behind")
        )
    return tuple(rows)


def keeps_whole_gradients(config: RunConfig) -> bool:
    """Whether FSDP2 adds up whole gradients over micro-batches, and divides them at the last one."""
    parallel = config.parallel
    return parallel.weight_pieces > 1 and parallel.microbatches > 1 and not divides_flat(config)


def divides_flat(config: RunConfig) -> bool:
    """Whether DeepSpeed's ZeRO holds the weights."""
    parallel = config.parallel
    return parallel.weight_pieces > 1 and (
        parallel.engine == "deepspeed" or (parallel.engine == "accelerate" and zero_stage(config) is not None)
    )


def zero_stage(config: RunConfig) -> int | None:
    """ZeRO's stage; None where it is not DeepSpeed that divides."""
    from .engine_accelerate import accelerated
    from .engine_deepspeed import zero_of

    if config.parallel.engine == "native":
        return None
    if config.parallel.engine == "accelerate" and accelerated(config).deepspeed is None:
        return None
    return zero_of(config).stage


def _of_engine(config: RunConfig, built: BuiltModel, held: Held) -> list[MemoryRow]:
    """What the engine holds for itself beside shards of weights, gradients and moments."""
    parallel = config.parallel
    if parallel.weight_pieces == 1:
        return []
    whole = sum(p.numel() for p in built.module.parameters()) // max(parallel.pipeline * parallel.tensor, 1)
    if divides_flat(config):
        return _of_zero(config, whole, held)
    largest, root = units_of(built)
    if parallel.engine == "accelerate" and _one_unit(config):
        largest, root = 0, whole
    rows = [
        MemoryRow(
            what="gathered weights",
            bytes=4 * (root + 2 * largest) // parallel.tensor,
            how="what is in no unit, and the two largest units, whole",
        )
    ]
    if keeps_whole_gradients(config) and parallel.pipeline == 1:
        more = 4 * (whole - held.total)
        how = "added up over micro-batches before they are divided"
        rows.append(MemoryRow(what="whole gradients", bytes=more, how=how))
    return rows


def _one_unit(config: RunConfig) -> bool:
    """Whether Accelerate is to gather the model as a whole."""
    from .engine_accelerate import accelerated

    return (accelerated(config).fsdp or {}).get("auto_wrap_policy") == "no_wrap"


def _of_zero(config: RunConfig, whole: int, held: Held) -> list[MemoryRow]:
    """DeepSpeed's own: working copies of the weights, and its buffers for gradients."""
    stage, each = zero_stage(config), 4
    if (stage or 0) >= 2 and config.precision != "fp32":
        each = 2
    looked_at = any(phase.techniques for phase in config.phases)
    rows = []
    if stage in (1, 2):
        rows.append(
            MemoryRow(what="working weights", bytes=each * whole, how=f"whole, {each} bytes a weight")
        )
    else:
        rows.append(
            MemoryRow(what="working weights", bytes=each * held.total, how=f"shares, {each} bytes a weight")
        )
    gradients = each * whole if stage == 1 else 0
    rows.append(
        MemoryRow(
            what="gradients on the way",
            bytes=gradients + each * whole,
            how="ZeRO's buffer for their reduction",
        )
    )
    if looked_at:
        how = "rows of weights and gradients for techniques"
        rows.append(MemoryRow(what="rows", bytes=8 * held.total, how=how))
    return rows


def in_flight(config: RunConfig) -> tuple[float, str]:
    """How many micro-batches' activations of the whole model the fullest rank keeps at once, and why."""
    parallel = config.parallel
    p, m = parallel.pipeline, parallel.microbatches
    if p == 1:
        return 1.0, "one micro-batch, forward, loss and backward"
    if parallel.schedule in ("gpipe", "looped_bfs"):
        return m / p, f"{m} micro-batches of 1/{p} of the model"
    if SCHEDULES[parallel.schedule].folded:  # as 1f1b, but on every rank alike
        return min(m / p, 1.0), f"{min(2 * m, 2 * p)} micro-batch parts of 1/{2 * p} of the model"
    if parallel.schedule == "1f1b":
        return min(m, p) / p, f"{min(m, p)} micro-batches of 1/{p} of the model"
    parts = min(
        2 * m, p + 2 * (p - 1) + 1
    )  # two stages a rank: warm-up of the first rank, in parts of 1/(2p)
    return parts / (2 * p), f"{parts} micro-batch parts of 1/{2 * p} of the model"


def units_of(built: BuiltModel) -> tuple[int, int]:
    """Weights of the largest FSDP unit, and of what is in none and stays gathered from forward to backward."""
    from ..parallel.fully_sharded import find_units

    module = built.module
    sizes = {id(p): p.numel() for p in module.parameters()}
    inside: set[int] = set()
    largest = 0
    for name in find_units(module, built.layout):
        mine = {id(p) for p in module.get_submodule(name).parameters()} - inside
        largest, inside = max(largest, sum(sizes[key] for key in mine)), inside | mine
    return largest, sum(size for key, size in sizes.items() if key not in inside)


def activation_bytes(built: BuiltModel, rows: int, *, recompute: int = 0) -> int:
    """What autograd keeps for the backward of `rows` rows through the whole model, counted on shapes alone.

    recompute: every n-th block keeps its input only; of what is inside, the largest block's counts, once.
    Weights and buffers are not counted. raises: whatever the model raises without numbers.
    """
    own = {_storage(tensor) for tensor in (*built.module.parameters(), *built.module.buffers())}
    kept: dict[
        int, Tensor
    ] = {}  # the tensors stay alive, so that no storage is counted under a reused address

    now: list[str] = []  # the block that runs
    inside: dict[str, dict[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        (inside[now[0]] if now else kept).setdefault(_storage(tensor), tensor)
        return tensor

    def enter(name: str) -> Any:
        def before(module: nn.Module, args: Any) -> None:
            now.append(name)
            kept.update((_storage(x), x) for x in args if isinstance(x, Tensor))

        return before

    handles = []
    for name in recomputed(built.module, built.layout, recompute):
        inside[name], block = {}, built.module.get_submodule(name)
        handles += [
            block.register_forward_pre_hook(enter(name)),
            block.register_forward_hook(lambda *_: now.clear()),
        ]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = built.module(*built.example(rows, device="meta"))
    del outputs
    for handle in handles:
        handle.remove()

    def size(held: Mapping[int, Tensor], without: Collection[int]) -> int:
        return sum(x.untyped_storage().nbytes() for key, x in held.items() if key not in without)

    return size(kept, own) + max((size(held, own | kept.keys()) for held in inside.values()), default=0)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
