"""Data parallelism with whole weights on every rank: torch DDP, with gradients summed instead of averaged."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .mesh import DATA_AXES, TOKEN_AXES, Mesh

# Batch normalisation is global here, so buffers are equal already. torch 2.13 has renamed the argument.
_NEW_NAME = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


def same_start(module: nn.Module, mesh: Mesh) -> None:
    """Give all data, context and tensor ranks the weights and buffers of the first one. cost: one broadcast."""
    tensors = [x.detach() for x in (*module.parameters(), *module.buffers())]
    for group in mesh.groups((*TOKEN_AXES, "tensor")):
        for tensor in tensors:
            whole = tensor.contiguous()
            dist.broadcast(whole, group=group, group_src=0)
            if whole is not tensor:
                tensor.copy_(whole)


class WholeModel:
    """One process: nothing to synchronise."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.call: Callable[..., Any] = module
        self.seed = 1.0  # gradient of the loss from which the backward starts

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss` (a scalar) are added to what is there."""
        loss.backward()

    def alone(self) -> AbstractContextManager:
        """While this is open, gradients stay on this rank (all micro-batches but the last)."""
        return nullcontext()

    def finish(self) -> None:
        """Called once per step, after the last backward."""

    def release(self) -> None:
        """Called after a forward without backward."""


class Replicas(WholeModel):
    """The same model on all data ranks; gradients are summed over them by torch DDP while backward runs.

    The first step reduces by hand and sees which parameters get gradients: DDP walks the whole graph each step
    when told that some may not, which costs as much as a small model, so it is told only where it is true.
    """

    def __init__(self, module: nn.Module, mesh: Mesh) -> None:
        super().__init__(module)
        self._mesh = mesh
        self._group = mesh.groups(DATA_AXES)[0]
        self._wrapped: DistributedDataParallel | None = None
        self._ones: dict[torch.dtype, Tensor] = {}

    def backward(self, loss: Tensor) -> None:
        """As `WholeModel.backward`; DDP divides by the number of ranks, so the seed gradient is that number."""
        if self._wrapped is None:
            loss.backward()
            return
        seed = self._ones.get(loss.dtype)
        if seed is None:
            seed = self._ones[loss.dtype] = torch.full_like(loss, self.seed)
        loss.backward(seed)

    def alone(self) -> AbstractContextManager:
        """As `WholeModel.alone`."""
        return self._wrapped.no_sync() if self._wrapped is not None else nullcontext()

    def finish(self) -> None:
        """As `WholeModel.finish`; after the first step, DDP takes over."""
        if self._wrapped is None:
            self._first_step()

    def _first_step(self) -> None:
        trainable = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        if not trainable:
            return
        has = torch.tensor([parameter.grad is not None for parameter in trainable], device=self._mesh.device)
        on_ranks = self._mesh.reduce(has.int(), over=DATA_AXES).tolist()
        for parameter, ranks in zip(trainable, on_ranks, strict=True):
            if ranks:  # used somewhere: then it has a gradient everywhere, as in one process
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad, group=self._group)
        self._wrapped = DistributedDataParallel(
            self.module,
            process_group=self._group,
            init_sync=False,
            find_unused_parameters=min(on_ranks) < self._mesh.data_ranks,
            gradient_as_bucket_view=True,
            **_NO_BUFFER_SYNC,
        )
        self.call, self.seed = self._wrapped, float(self._mesh.data_ranks)
