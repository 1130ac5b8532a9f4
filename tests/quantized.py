"""Models with quantized layers, made by hand: what export starts from, without a run."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from forgepress.compression.quantization.grid import grid_of, snap_, spread, weight_range
from forgepress.compression.quantization.modules import (
    ActivationQuantizer,
    Quantized,
    can_be_quantized,
    quantized,
    quantized_layers,
)
from torch import Tensor, nn


def quantize(
    model: nn.Module,
    rows: Tensor | Mapping[str, Tensor],
    *,
    bits: int = 8,
    group: int = 0,
    symmetric: bool = True,
    inputs: str | None = "static",
    inputs_symmetric: bool = False,
    only: Callable[[str, nn.Module], bool] = lambda name, layer: True,
) -> nn.Module:
    """Every layer that can be quantized, on the grid of its own range; static inputs on that of what ``rows`` bring."""
    for name, layer in list(model.named_modules()):
        if can_be_quantized(layer) and only(name, layer):
            quantizer = None
            if inputs is not None and not isinstance(layer, nn.Embedding):
                quantizer = ActivationQuantizer(symmetric=inputs_symmetric, dynamic=inputs == "dynamic")
            made = quantized(
                layer,
                weight_bits=bits,
                group_size=group,
                weight_symmetric=symmetric,
                input_quantizer=quantizer,
            )
            _write_grid(made, symmetric)
    if inputs is not None:
        _calibrate(model, rows)
    return model.eval()


def _write_grid(layer: Quantized, symmetric: bool) -> None:
    weight = layer.weight.detach()
    low, high = weight_range(weight, layer.group_size or "channel")
    scale, zero_point = grid_of(low, high, layer.weight_bits, symmetric)
    features = torch.arange(weight.shape[1])
    zero = None if symmetric else spread(zero_point, features, layer.group_size)
    snap_(weight, spread(scale, features, layer.group_size), zero, layer.weight_bits)
    layer.deliver(scale, None if symmetric else zero_point)


def _calibrate(model: nn.Module, rows: Tensor | Mapping[str, Tensor]) -> None:
    quantizers = [q for layer in quantized_layers(model).values() if (q := layer.input_quantizer) is not None]
    for quantizer in quantizers:
        quantizer.observing = not quantizer.dynamic
    with torch.no_grad():
        call(model.eval(), rows)
    for quantizer in quantizers:
        if quantizer.seen is not None:
            low, high = -quantizer.seen[0], quantizer.seen[1]
            scale, zero_point = grid_of(
                low.clamp(max=0), high.clamp(min=0), quantizer.bits, quantizer.symmetric
            )
            quantizer.scale.copy_(scale)
            quantizer.zero_point.copy_(zero_point)
        quantizer.observing, quantizer.enabled, quantizer.seen = False, True, None


def call(model: nn.Module, rows: Any) -> Any:
    """The model on one tensor, or on keyword inputs."""
    return model(**rows) if isinstance(rows, Mapping) else model(rows)
