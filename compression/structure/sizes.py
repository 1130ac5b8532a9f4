"""Sizes that layers keep as attributes beside their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Shapes = Mapping[str, tuple[int, ...]]


def layer_sizes(model: nn.Module, shapes: Shapes, groups: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Module → {attribute: value} for the layers that hold one of ``shapes`` (parameter or buffer → new shape).

    groups: module → its number of groups, for convolutions whose weight alone does not tell the channels.
    """
    found: dict[str, dict[str, Any]] = {}
    by_object = {id(_tensor(model, name)): shape for name, shape in shapes.items()}
    for name, module in model.named_modules():
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and id(tensor) in by_object:  # also the second holder of a tied weight
                own = _sizes(module, leaf, by_object[id(tensor)], groups.get(name))
                found.setdefault(name, {}).update(own)
    return {name: values for name, values in found.items() if values}


def _tensor(model: nn.Module, name: str) -> Any:
    module, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(module), leaf)


def _sizes(module: nn.Module, leaf: str, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    weight = leaf == "weight"
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]} if weight else {}
    if isinstance(module, _ConvNd) and weight:
        return _conv_sizes(module, shape, groups or module.groups)
    if isinstance(module, nn.Embedding) and weight:
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if isinstance(module, _NormBase):  # batch and instance norm
        return {"num_features": shape[0]} if len(shape) == 1 else {}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0]}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": list(shape)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if type(module).__name__ == "Conv1D" and weight:  # transformers' linear layer with [in, out]
        return {"nx": shape[0], "nf": shape[1]}
    return {}


def _conv_sizes(module: _ConvNd, shape: tuple[int, ...], groups: int) -> dict[str, Any]:
    if isinstance(module, _ConvTransposeNd):
        return {"in_channels": shape[0], "out_channels": shape[1] * groups}
    return {"out_channels": shape[0], "in_channels": shape[1] * groups}
