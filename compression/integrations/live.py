"""A model as another library trains it: its weights by their own names, and the sums over ranks that it needs."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...errors import ConfigError
from ..placement import Reduced
from ..run import Reduce
from ..weight import Weight

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile, whose parameters have the names one knows.

    raises: ConfigError for a wrapper that flattens or hides parameters (FSDP 1, DeepSpeed ZeRO-3).
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ConfigError(
                "the model is wrapped in FullyShardedDataParallel, whose flat parameters have no shapes that a mask"
                " could follow; want FSDP2 (fully_shard; fsdp_version: 2 in Accelerate), or DistributedDataParallel"
            )
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ConfigError(
            "the model's parameters are partitioned by DeepSpeed ZeRO-3, behind which no weight can be reached; want"
            " FSDP2 or DistributedDataParallel"
        )
    return model


def live_weights(model: nn.Module) -> list[Weight]:
    """Shard views of the trainable parameters, each part counted once over all ranks."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not any(isinstance(p, DTensor) for _, p in named):
        return [Weight(name, p) for name, p in named]
    return [Weight(name, p, dict(_coordinates(p))) for name, p in named]


def _coordinates(parameter: Tensor) -> Iterator[tuple[str, int]]:
    """This rank's index on each axis that may hold copies; a plain parameter among cut ones is a copy everywhere."""
    if not isinstance(parameter, DTensor):
        yield "ranks", dist.get_rank()
        return
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    names = mesh.mesh_dim_names or [f"axis{i}" for i in range(mesh.ndim)]
    yield from zip(names, coordinate, strict=True)


def over_ranks(x: Tensor, operation: str) -> Tensor:
    """``x`` combined over all ranks, also where there is but this one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        x = x.contiguous()
        dist.all_reduce(x, _OPERATIONS[operation])
    return x


def reduce_of(weights: list[Weight]) -> Reduce | None:
    """How to add over the ranks that hold other weights: not at all where every rank holds all of them."""
    return over_ranks if any(isinstance(w.parameter, DTensor) for w in weights) else None


def whole_of(placed: Weight | Reduced, local: Tensor) -> Tensor:
    """The whole tensor, on the CPU, of which ``local`` is this rank's part. Collective."""
    wrapped = placed.wrap(local)
    whole = wrapped.full_tensor() if isinstance(wrapped, DTensor) else wrapped
    return whole.detach().cpu().clone()


def part_of(weight: Weight, whole: Tensor) -> Tensor:
    """This rank's part of a tensor placed like ``weight``; dims of another size are whole everywhere."""
    for dim, size in enumerate(weight.shape):
        if whole.shape[dim] == size:
            whole = whole.index_select(dim, weight.start(dim))
    return whole.to(weight.local.device)


def clip(weights: list[Weight], total: Tensor, limit: float) -> None:
    """Scale gradients so that their norm, whose square is ``total``, is at most ``limit``."""
    factor = (limit / (total.sqrt() + 1e-6)).clamp(max=1.0)
    for weight in weights:
        if weight.grad is not None:
            weight.grad.mul_(factor.to(weight.grad.dtype))
