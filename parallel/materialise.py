"""From shapes to memory: a model that was built on the meta device gets room for the part that this rank holds."""

import torch
from torch import Tensor, nn

from ..errors import ConfigError


def is_shapes(module: nn.Module) -> bool:
    """Whether the parameters of `module` have shapes alone (of none: False)."""
    first = next(module.parameters(), None)
    return first is not None and first.is_meta


def give_room(part: nn.Module, device: torch.device, *, offload: bool = False) -> None:
    """Give `part`, divided already, uninitialised memory in place; whoever has the values writes them after.

    offload: parameters in host memory, buffers on the device.   Shared parameters stay shared.
    raises: ConfigError for a tensor that is neither parameter nor buffer: nobody would write it.
    """
    shared: dict[int, list[str]] = {}
    for name, parameter in part.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    part.to_empty(device="cpu" if offload else device)
    for first, *others in shared.values():
        for name in others:
            _put(part, name, part.get_parameter(first))
    for module in part.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[key] = buffer.to(device)
    _refuse_loose(part)


def _put(part: nn.Module, name: str, parameter: nn.Parameter) -> None:
    parent, _, key = name.rpartition(".")
    part.get_submodule(parent)._parameters[key] = parameter


def _refuse_loose(part: nn.Module) -> None:
    for name, module in part.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                raise ConfigError(
                    f"parallel.build_once=True: {name or 'the model'} keeps the tensor {key} outside of its parameters "
                    "and buffers, so that nobody would send its values; make it a buffer, or set build_once=False"
                )
