"""Batch normalisation folded into the layer before it, so that an integer kernel finds nothing between them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .grid import exact
from .modules import Quantized


def foldable_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of (layer, batch normalisation) where the layer's output goes into the normalisation and nowhere else.

    Found by tracing: the whole model where that is possible, else those of its parts that can be traced. A layer
    that is called twice is left alone. Layers: linear and convolutions of one or two dims.
    cost: one symbolic trace, without computing anything.
    """
    pairs = dict(_pairs_within(model, ""))
    modules = dict(model.named_modules())
    return [(layer, norm) for layer, norm in pairs.items() if _fits(modules[layer], modules[norm])]


def _pairs_within(module: nn.Module, prefix: str) -> list[tuple[str, str]]:
    if not any(isinstance(m, _BatchNorm) for m in module.modules()):
        return []
    graph = _trace(module)
    if graph is None:
        return [
            pair
            for name, child in module.named_children()
            for pair in _pairs_within(child, f"{prefix}{name}.")
        ]
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    found = []
    for node in graph.nodes:
        layer = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(layer, fx.Node) or layer.op != "call_module" or len(layer.users) != 1:
            continue
        if calls[str(node.target)] == calls[str(layer.target)] == 1:
            found.append((f"{prefix}{layer.target}", f"{prefix}{node.target}"))
    return found


class _Tracer(fx.Tracer):
    """Goes into containers and models, and takes quantized layers for whole, as it does those of torch."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, Quantized | _BatchNorm) or not list(m.children())
        return known or super().is_leaf_module(m, module_qualified_name)


def _trace(module: nn.Module) -> fx.Graph | None:
    try:
        return _Tracer().trace(module)
    except Exception:  # whatever a forward does that cannot be traced: its parts are asked instead
        return None


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d
    return isinstance(layer, kinds) and isinstance(norm, _BatchNorm) and norm.running_mean is not None


def factor_of(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """(factor, shift) of each channel: the normalisation in evaluation is ``x · factor + shift``. Two [channels]."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach()
    shift = -norm.running_mean * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach()


@torch.no_grad()
def fold(model: nn.Module, layer_name: str, norm_name: str) -> Tensor:
    """Fold the normalisation into the layer's weight and bias, in place; an identity takes its place.

    The layer gets a bias if it has none. An activation inside the normalisation (timm's BatchNormAct2d) stays.
    returns: the factor that each output channel was multiplied with: [channels].
    source: Jacob et al. 2017, arXiv:1712.05877, section 3.2.
    """
    layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and isinstance(norm, _BatchNorm)
    factor, shift = factor_of(norm)
    bias = shift if layer.bias is None else layer.bias * factor + shift
    make_room(model, layer_name, norm_name)
    layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_(bias)  # pyright: ignore[reportOptionalMemberAccess]
    return factor


def make_room(model: nn.Module, layer_name: str, norm_name: str) -> None:
    """What folding does to the model's shape: a bias for the layer, an identity for the normalisation."""
    layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
    assert isinstance(layer.weight, Tensor)
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.detach().new_zeros(layer.weight.shape[0]))
    rest: nn.Module = nn.Identity()
    if hasattr(norm, "act") and hasattr(norm, "drop"):
        rest = nn.Sequential(norm.drop, norm.act)  # pyright: ignore[reportArgumentType]
    model.set_submodule(norm_name, rest)


def fold_scale(scale: Tensor, factor: Tensor) -> Tensor:
    """The step sizes of a folded weight that lay on a symmetric grid: its levels stay (or change sign).

    scale: [out or 1, groups or 1, 1, …].   factor: [out], as `fold` gives it.   returns: [out, groups or 1, 1, …].
    """
    scale = scale * factor.abs().view(-1, *[1] * (scale.ndim - 1))
    return exact(scale)
