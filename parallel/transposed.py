"""Tensor parallelism of the transposed linear layers of GPT-2 (transformers' Conv1D), whose weight is [in, out]."""

from functools import partial
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel


class TransposedColumn(ColwiseParallel):
    """As `ColwiseParallel`, for a weight [in, out]."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return _distribute(self, module, device_mesh, (Shard(1), Shard(0)))


class TransposedRow(RowwiseParallel):
    """As `RowwiseParallel`, for a weight [in, out]."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self.desired_input_layouts = (Shard(-1),)
        return _distribute(self, module, device_mesh, (Shard(0), Replicate()))


def _distribute(style: Any, module: nn.Module, mesh: DeviceMesh, places: tuple[Any, Any]) -> nn.Module:
    def cut(_: str, layer: nn.Module, mesh: DeviceMesh) -> None:
        for name, place in zip(("weight", "bias"), places, strict=True):
            old = layer.get_parameter(name)
            whole = distribute_tensor(old, mesh, [place], src_data_rank=style.src_data_rank)
            layer.register_parameter(name, nn.Parameter(whole, requires_grad=old.requires_grad))

    wanted = style.desired_input_layouts
    before = partial(style._prepare_input_fn, style.input_layouts, wanted)
    after = partial(style._prepare_output_fn, style.output_layouts, style.use_local_output)
    return distribute_module(module, mesh, cut, before, after)
