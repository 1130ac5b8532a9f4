"""Whole tensors from divided ones, and back: one tensor at a time, from and to any mesh."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from .mesh import Mesh

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement


def is_divided(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether `tensor` is a DTensor. By its attribute: importing the class costs one process a second for nothing."""
    return hasattr(tensor, "placements")


def _divided_dim(placement: "Placement") -> int | None:
    assert not placement.is_partial(), "a sum that has not been made yet has no whole"
    return getattr(placement, "dim", None)  # Shard and FSDP's _StridedShard have one, Replicate has none


def _lengths(length: int, pieces: int) -> list[int]:
    """Lengths of torch.chunk's pieces, empty ones included: all but the last are ceil(length / pieces)."""
    size = -(-length // pieces)
    return [max(0, min(size, length - size * index)) for index in range(pieces)]


def _axis_lengths(tensor: "DTensor") -> list[tuple[int, int, list[int]]]:
    """(mesh dim, tensor dim, lengths of the pieces along it), in the order in which the pieces are put together.

    FSDP cuts what tensor parallelism has left (`_StridedShard` before `Shard` on the same dim), so the mesh is
    undone from left to right, and cut from right to left.
    """
    shape, cuts = list(tensor.shape), []
    here = tensor.device_mesh.get_coordinate()
    assert here is not None, "this rank is not in the tensor's mesh"
    for axis in reversed(range(tensor.device_mesh.ndim)):
        dim = _divided_dim(tensor.placements[axis])
        if dim is not None:
            lengths = _lengths(shape[dim], tensor.device_mesh.size(axis))
            cuts.append((axis, dim, lengths))
            shape[dim] = lengths[here[axis]]
    return cuts[::-1]


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be divided; called on all ranks of its mesh, given to all of them.

    Unlike `DTensor.full_tensor` it does not depend on how torch pads uneven strided shards.
    cost: one all-gather for each axis that divides it.
    """
    if not is_divided(tensor):
        return tensor.detach()
    mesh, local = tensor.device_mesh, tensor.to_local().detach()
    for axis, dim, lengths in _axis_lengths(tensor):
        if len(lengths) == 1:
            continue
        shape = [*local.shape[:dim], max(lengths), *local.shape[dim + 1 :]]
        padded = local.new_zeros(shape)
        padded.narrow(dim, 0, local.shape[dim]).copy_(local)
        pieces = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(pieces, padded, group=mesh.get_group(axis))
        local = torch.cat([p.narrow(dim, 0, n) for p, n in zip(pieces, lengths, strict=True)], dim)
    return local


def local_part(whole: Tensor, like: Tensor) -> Tensor:
    """The part of `whole` that this rank holds of a tensor divided as `like`; a view, no communication."""
    if not is_divided(like):
        return whole
    here = like.device_mesh.get_coordinate()
    assert here is not None, "this rank is not in the tensor's mesh"
    for axis, dim, lengths in reversed(_axis_lengths(like)):
        whole = whole.narrow(dim, sum(lengths[: here[axis]]), lengths[here[axis]])
    return whole


def divided_as(local: Tensor, like: Tensor) -> Tensor:
    """`local`, say an optimizer moment of a shard, as a part of a whole that is divided as `like`.

    local: shape of like's local part.   returns: a DTensor that shares its storage, or `local` itself.
    """
    if not is_divided(like):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _tensors(held: Any) -> Mapping[str, Tensor]:
    return held if isinstance(held, Mapping) else {**held.parameters(), **held.buffers()}


def gather(held: Any, mesh: Mesh) -> dict[str, Tensor]:
    """Whole tensors by name, on rank 0 and on its CPU; {} on the others.

    held: an engine (its parameters and buffers) or name → tensor held here; what ranks of one pipeline stage
    hold must have the same names. Called on all ranks.   cost: memory of one whole tensor on each rank, and of
    the whole model on rank 0.
    """
    tensors = _tensors(held)
    if mesh.world == 1:
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    result: dict[str, Tensor] = {}
    for stage, names in enumerate(_names_by_stage(tensors, mesh)):
        sender = stage * (
            mesh.world // mesh.pipeline
        )  # the stage's first rank; stages are the outermost axis
        here = mesh.coordinates["pipeline"] == stage
        for name, shape, dtype in names:
            if here:
                whole = full_tensor(tensors[name]).contiguous().to(mesh.device)
                if sender == mesh.rank == 0:
                    result[name] = whole.cpu().clone()
                elif mesh.rank == sender:
                    dist.send(whole, 0)
            elif mesh.rank == 0:
                whole = torch.empty(shape, dtype=dtype, device=mesh.device)
                dist.recv(whole, sender)
                result[name] = whole.cpu()
    return result


def _names_by_stage(
    tensors: Mapping[str, Tensor], mesh: Mesh
) -> list[list[tuple[str, torch.Size, torch.dtype]]]:
    mine = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
    if mesh.pipeline == 1:
        return [mine]
    everyone: list[Any] = [None] * mesh.pipeline
    dist.all_gather_object(everyone, mine, group=mesh.axes("pipeline").get_group())
    return everyone


@torch.no_grad()
def place(whole: Mapping[str, Tensor], held: Any) -> None:
    """Write whole tensors that every rank has into the parts held here. Names not held here are passed over."""
    for name, target in _tensors(held).items():
        if name in whole:
            _write(whole[name], target)


@torch.no_grad()
def scatter(whole: Mapping[str, Tensor], held: Any, mesh: Mesh) -> None:
    """Write whole tensors that rank 0 has (others pass {}) into the parts held on all ranks.

    Called on all ranks.   raises: KeyError, on all ranks, where a tensor held here is not among them.
    cost: one broadcast per tensor; memory of one whole tensor on each rank.
    """
    tensors = _tensors(held)
    if mesh.world == 1:
        for name, target in tensors.items():
            _write(whole[name], target)
        return
    offered: list[Any] = [[(name, tensor.shape, tensor.dtype) for name, tensor in whole.items()]]
    dist.broadcast_object_list(offered, src=0)
    missing = sorted(tensors.keys() - {name for name, _, _ in offered[0]})
    everyone: list[Any] = [None] * mesh.world
    dist.all_gather_object(everyone, missing)
    if any(everyone):
        raise KeyError(
            f"no whole tensor for {', '.join(sorted({name for names in everyone for name in names}))}"
        )
    for name, shape, dtype in offered[0]:
        tensor = whole[name].to(mesh.device).contiguous() if mesh.rank == 0 else None
        if tensor is None:
            tensor = torch.empty(shape, dtype=dtype, device=mesh.device)
        dist.broadcast(tensor, src=0)
        if name in tensors:
            _write(tensor, tensors[name])


def _write(whole: Tensor, target: Tensor) -> None:
    part = local_part(whole, target)
    target = target.to_local() if is_divided(target) else target
    if part.shape != target.shape:
        raise ValueError(
            f"a whole of shape {tuple(whole.shape)} does not fit a part of {tuple(target.shape)}"
        )
    target.detach().copy_(part)
