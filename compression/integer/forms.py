"""A quantized layer as plain values: integer levels, their grid, and the grid of what flows in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..quantization.modules import Quantized

UNSIGNED = 128  # added to a signed level where a kernel wants unsigned 8-bit activations


@dataclass(frozen=True, kw_only=True)
class InputGrid:
    """How what flows into a layer is rounded: to unsigned 8-bit levels, in one grid for the whole tensor.

    low, high: lowest and highest level in use; 0 and 255 but for narrow or symmetric grids.
    dynamic:   each row of the last ``row_dims`` dims has the grid of its own range; the other fields say nothing then.
    """

    scale: float = 1.0
    zero_point: int = 0
    low: int = 0
    high: int = 255
    dynamic: bool = False
    row_dims: int = 1
    symmetric: bool = False

    @property
    def narrow(self) -> bool:
        """Whether values must be clipped before they are rounded, because 8 bits would hold more levels."""
        return not self.dynamic and (self.low, self.high) != (0, 255)

    @property
    def ends(self) -> tuple[float, float]:
        """The values of the lowest and the highest level."""
        return (self.low - self.zero_point) * self.scale, (self.high - self.zero_point) * self.scale


@dataclass(frozen=True, kw_only=True)
class Form:
    """One layer. ``weight = (levels - zero_point) × scale`` holds exactly in float32.

    levels:     int8, shaped like the weight [out, in, …]; unsigned levels are moved down by half their range.
    scale:      float32 [out, groups, 1, …].
    zero_point: int8, shaped like `scale`; None where it is 0 everywhere.
    bits:       8, 4 or 2: how many the levels need.
    group:      input features (dim 1) that share a scale; 0: all.
    input:      None: the layer computes on inputs as they come (weights only).
    """

    levels: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int
    group: int
    input: InputGrid | None

    def dequantized(self) -> Tensor:
        """The float32 weight."""
        features = torch.arange(self.levels.shape[1]) // (self.group or max(self.levels.shape[1], 1))
        zero = 0 if self.zero_point is None else self.zero_point.index_select(1, features).int()
        return (self.levels.int() - zero) * self.scale.index_select(1, features)

    @property
    def row_scale(self) -> Tensor:
        """float32 [out]: one scale for each output channel; only without groups."""
        return self.scale.reshape(-1)

    @property
    def row_zero_point(self) -> Tensor | None:
        """int8 [out], or None; only without groups."""
        return None if self.zero_point is None else self.zero_point.reshape(-1)


def read(name: str, layer: Quantized) -> Form:
    """The layer ``name`` as integers.

    raises: ConfigError where it holds no grid (its phase was not finalized) or a weight is not on it.
    """
    if layer.weight_scale is None:
        raise ConfigError(
            f"export: layer {name} is to be quantized, but its grid was never written; finalize its phase first"
        )
    if off := layer.weights_off_grid():
        raise ConfigError(
            f"export: {off} of {layer.weight.numel()} weights of layer {name} are not on its grid, so it would stay in "
            "float; let later phases keep the grid (quantization.keep_grid)"
        )
    shift = 0 if layer.weight_symmetric else 2 ** (layer.weight_bits - 1)
    levels = (layer.integer_weight().cpu().int() - shift).to(torch.int8)
    group = layer.group_size if 0 < layer.group_size < layer.weight.shape[1] else 0
    shape = [layer.weight.shape[0], math.ceil(layer.weight.shape[1] / group) if group else 1]
    shape += [1] * (layer.weight.dim() - 2)
    zero_point = layer.weight_zero_point
    moved = (
        None if zero_point is None else (zero_point.detach().cpu().int() - shift).expand(shape).to(torch.int8)
    )
    return Form(
        levels=levels.contiguous(),
        scale=layer.weight_scale.detach().cpu().expand(shape).contiguous(),
        zero_point=None if moved is None or not bool(moved.any()) else moved.contiguous(),
        bits=layer.weight_bits,
        group=group,
        input=_input_grid(name, layer),
    )


def _input_grid(name: str, layer: Quantized) -> InputGrid | None:
    quantizer = layer.input_quantizer
    if quantizer is None or isinstance(layer, nn.Embedding):
        return None
    if not quantizer.enabled:
        raise ConfigError(
            f"export: the inputs of layer {name} are to be quantized, but its quantizer was never switched on; "
            "let the phase run past its delay"
        )
    if quantizer.dynamic:
        if quantizer.bits != 8:
            raise ConfigError(
                f"export: layer {name} rounds its inputs to {quantizer.bits} bits while it runs; want 8"
            )
        return InputGrid(dynamic=True, row_dims=quantizer.row_dims, symmetric=quantizer.symmetric)
    low, high = quantizer.levels
    shift = UNSIGNED if low < 0 else 0
    return InputGrid(
        scale=float(quantizer.scale),
        zero_point=int(quantizer.zero_point) + shift,
        low=low + shift,
        high=high + shift,
        symmetric=quantizer.symmetric,
    )
