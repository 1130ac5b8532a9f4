"""The shard view: what a technique sees of one parameter, on every engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .placement import Reduced, is_divided, positions

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class Weight:
    """One parameter: its global name and shape, and the part of it that this rank holds.

    name:  full name in the whole model, the same on every mesh.
    shape: global shape.
    local: the part held here, a plain tensor in the optimizer's precision that shares memory with the
           parameter; may be empty (uneven shards). Writing into it changes what the model computes with.
    owned: True on exactly one of the ranks that hold the same part, so that sums over ranks count it once.

    It stands on DTensor placements: never assume that dim 0 is the sharded one (FSDP with tensor parallel
    gives strided shards, row-parallel layers shard dim 1).
    """

    def __init__(self, name: str, parameter: Tensor, coordinates: Mapping[str, int] | None = None) -> None:
        """``coordinates``: this rank's index on each mesh axis that may hold other parts (or copies)."""
        self.name = name
        self.shape = parameter.shape
        self.parameter = parameter
        self._spread = _sharded_axes(parameter)
        self.owned = all(
            index == 0 for axis, index in (coordinates or {}).items() if axis not in self._spread
        )
        self.local = local_of(parameter)
        # The optimizer takes plain tensors: a step on DTensors costs dispatch per parameter and refuses empty shards.
        self.tensor: Tensor = self.local if is_divided(parameter) else parameter
        self._dense: Tensor | None = None
        self.projected = False

    # ── gradients

    @property
    def grad(self) -> Tensor | None:
        """The local part of the gradient (of the global batch after backward); None where there is none."""
        return self.tensor.grad

    def take_grad(self) -> None:
        """Point ``grad`` at the local part of what backward left on the parameter."""
        if self.tensor is not self.parameter:
            grad = self.parameter.grad
            self.tensor.grad = None if grad is None else local_of(grad)

    def drop_grad(self) -> None:
        """Forget the gradient (it is created anew by the next backward)."""
        self.parameter.grad = None
        if self.tensor is not self.parameter:
            self.tensor.grad = None

    # ── reductions over exactly the ranks that hold the other parts

    def sum(self, x: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """Sum of ``x`` (shaped like ``local``) over ``dims`` of the whole parameter (None: all), kept as size 1.

        Dims that stay are those of the local part. Collective over the ranks that share the parameter.
        """
        dims = tuple(range(x.ndim)) if dims is None else tuple(dims)
        return self._reduce(x.sum(dim=dims, keepdim=True) if dims else x.clone(), dims, "sum")

    def amax(self, x: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """Largest value of ``x`` over ``dims``, as `sum`; an empty part counts as minus infinity."""
        dims = tuple(range(x.ndim)) if dims is None else tuple(dims)
        if not dims:
            part = x.clone()  # torch takes no dims for all of them
        elif x.numel():
            part = x.amax(dim=dims, keepdim=True)
        else:
            shape = [1 if d in dims else size for d, size in enumerate(x.shape)]
            part = x.new_full(shape, float("-inf"))
        return self._reduce(part, dims, "max")

    def add_over_parts(self, x: Tensor) -> Tensor:
        """Add ``x`` (any shape, equal on all) over the ranks that hold the parts of this parameter."""
        return self._reduce(x, None, "sum")

    def _reduce(self, x: Tensor, dims: tuple[int, ...] | None, operation: str) -> Tensor:
        for axis_dim, group in self._spread.values():
            if (dims is None or axis_dim in dims) and group is not None:
                x = x.contiguous()
                dist.all_reduce(x, _OPERATIONS[operation], group=group)
        return x

    # ── the projection: one dense copy behind the working values

    @property
    def dense(self) -> Tensor:
        """The dense values that the optimizer moves; ``local`` itself until something was projected."""
        return self._dense if self._dense is not None and self.projected else self.local

    def project(self, change: Callable[[Tensor], object]) -> None:
        """Write working values: ``change`` alters ``local`` in place; the dense values are kept aside.

        In ``after_step`` only, where ``local`` holds dense values for the first technique in the list and
        the working values of those before it for the others. The optimizer's next step starts from the
        dense values again, with the gradient taken at the working ones (straight-through).
        """
        if not self.projected:
            if self._dense is None:
                self._dense = torch.empty_like(self.local)
            self._dense.copy_(self.local)
            self.projected = True
        change(self.local)

    def restore_dense(self) -> None:
        """Put the dense values back, just before the optimizer moves them."""
        if self.projected and self._dense is not None:
            self.local.copy_(self._dense)
            self.projected = False

    def forget_dense(self) -> None:
        """Let the working values be the only ones (the end of a phase)."""
        self._dense, self.projected = None, False

    def set_dense(self, values: Tensor) -> None:
        """Take ``values`` as the dense copy behind the present working values (resume)."""
        self._dense, self.projected = values, True

    # ── where the local part lies in the whole

    def start(self, dim: int) -> Tensor:
        """Indices along ``dim`` of the whole parameter that ``local`` holds, ascending (int64, on the CPU)."""
        return positions(self.parameter, dim)

    def along(self, x: Tensor, dim: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """``x`` (shaped like ``local``) with ``dim`` made whole, and what takes such a tensor back to the local part.

        Collective over the ranks that share the parameter; nothing is communicated where no axis cuts ``dim``.
        cost: one all-reduce of ``x`` with ``dim`` at full size for each axis that cuts it.
        """
        groups = [group for cut, group in self._spread.values() if cut == dim and group is not None]
        if not groups:
            return x, lambda y: y
        here = positions(self.parameter, dim).to(x.device)
        shape = [*x.shape]
        shape[dim] = self.shape[dim]
        whole = x.new_zeros(shape, dtype=torch.uint8 if x.dtype == torch.bool else x.dtype)
        whole.index_copy_(dim, here, x.to(whole.dtype))
        for group in groups:
            dist.all_reduce(whole, group=group)
        return whole.to(x.dtype), lambda y: y.index_select(dim, here)

    # ── placement of tensors that belong to this parameter (masks, moments, dense copies)

    def reduced(self, sizes: Mapping[int, int]) -> Reduced:
        """Where state belongs that has other sizes (dim → size) along some dims, such as one scale a row."""
        return Reduced(self.name, self.parameter, sizes)

    def wrap(self, local: Tensor) -> Tensor:
        """``local`` (shaped like the local part, any dtype) placed like the parameter: a DTensor where it is one."""
        if not is_divided(self.parameter):
            return local
        from torch.distributed.tensor import DTensor

        spec = self.parameter
        return DTensor.from_local(
            local, spec.device_mesh, spec.placements, run_check=False, shape=spec.shape, stride=spec.stride()
        )

    def live(self) -> Tensor:
        """The local part read anew from the parameter, for checks that must not trust a kept view."""
        return local_of(self.parameter)

    def __repr__(self) -> str:
        return f"Weight({self.name}, {tuple(self.shape)}, local {tuple(self.local.shape)})"


def local_of(tensor: Tensor) -> Tensor:
    """What this rank holds of a parameter or buffer, detached, in the same memory (of a plain tensor: all of it).

    Tensor parallelism turns also the buffers of the layers that it divides into DTensors.
    """
    with torch.no_grad():
        return tensor.to_local().detach() if is_divided(tensor) else tensor.detach()


def _sharded_axes(parameter: Tensor) -> dict[str, tuple[int, dist.ProcessGroup | None]]:
    """Mesh axis → (dim that it shards, group along it), for axes that hold different parts."""
    if not is_divided(parameter):
        return {}
    mesh, axes = parameter.device_mesh, {}
    for index, placement in enumerate(parameter.placements):
        if placement.is_replicate():
            continue
        if placement.is_partial():
            raise ValueError(f"a parameter with placement {placement} holds no shard of itself")
        name = (mesh.mesh_dim_names or [f"axis{i}" for i in range(mesh.ndim)])[index]
        axes[name] = (placement.dim, mesh.get_group(index) if mesh.size(index) > 1 else None)  # pyright: ignore[reportAttributeAccessIssue]
    return axes


def weights_of(
    parameters: Mapping[str, nn.Parameter | Tensor], coordinates: Mapping[str, int] | None = None
) -> list[Weight]:
    """Shard views of the trainable ``parameters`` held here, by their global names."""
    return [Weight(name, p, coordinates) for name, p in parameters.items() if p.requires_grad]
