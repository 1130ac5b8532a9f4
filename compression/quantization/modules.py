"""Layers that compute on grids: the same module objects under another class, with a quantizer of their inputs.

While a phase trains or calibrates, the weights of such a layer are what the technique projects them to (the layer just
computes with them), and ``input_quantizer`` rounds what flows in. When the phase is finalized the grid of the weights
is written into the layer: ``weight`` holds exactly ``(level - zero point) × scale``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .activations import ActivationQuantizer
from .grid import off_grid, spread, to_levels


class Quantized(nn.Module):
    """Mixed in before a layer class: its weight lies on a grid, its input is rounded by ``input_quantizer``.

    weight_name:      the weight's parameter name in the model (that of the first of tied layers).
    input_quantizer:  None for weights only.
    weight_bits:      8, 4 or 2.
    group_size:       input features (dim 1 of the weight) that share a scale; 0 = all of them.
    weight_symmetric: signed levels without zero points, or unsigned ones with them.
    weight_scale:     buffer, float32 [out or 1, groups or 1, 1, …] with as many dims as the weight; None until
                      finalize. Keeps 16 significant bits, so that ``weight`` is exactly on the grid.
    weight_zero_point: buffer, int32, shaped like it; None until finalize and where symmetric.
    """

    weight: Tensor
    weight_name: str
    input_quantizer: ActivationQuantizer | None
    weight_bits: int
    group_size: int
    weight_symmetric: bool
    weight_scale: Tensor | None
    weight_zero_point: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """As the layer that it was, on the rounded input."""
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        return super().forward(input)

    def deliver(self, scale: Tensor, zero_point: Tensor | None) -> None:
        """Write the grid into the layer: ``weight`` is on it from now on (the caller has seen to that)."""
        self.register_buffer("weight_scale", scale.to(torch.float32))
        self.register_buffer("weight_zero_point", None if zero_point is None else zero_point.int())

    def weight_grid(self) -> tuple[Tensor, Tensor | None]:
        """(scale, zero point or None), shaped to go with the whole weight. raises: ValueError before finalize."""
        if self.weight_scale is None:
            raise ValueError("this layer's grid is written when its phase is finalized")
        features = torch.arange(self.weight.shape[1], device=self.weight_scale.device)
        zero_point = self.weight_zero_point
        zeros = None if zero_point is None else spread(zero_point, features, self.group_size)
        return spread(self.weight_scale, features, self.group_size), zeros

    def integer_weight(self) -> Tensor:
        """The levels of the whole weight, shaped like it: int8 where symmetric, uint8 where not."""
        q = to_levels(self.weight.detach(), *self.weight_grid(), self.weight_bits)
        return q.to(torch.int8 if self.weight_symmetric else torch.uint8)

    def weights_off_grid(self) -> int:
        """How many weights are not exactly on the layer's grid."""
        return int(off_grid(self.weight.detach(), *self.weight_grid(), self.weight_bits))


class QuantizedLinear(Quantized, nn.Linear):
    """A linear layer on grids."""


class QuantizedConv1d(Quantized, nn.Conv1d):
    """A one-dimensional convolution on grids."""


class QuantizedConv2d(Quantized, nn.Conv2d):
    """A two-dimensional convolution on grids."""


class QuantizedEmbedding(Quantized, nn.Embedding):
    """An embedding whose weights lie on a grid; there is no activation to round."""


KINDS: dict[type[nn.Module], type[Quantized]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Embedding: QuantizedEmbedding,
}
"""Layer class → what it becomes."""


def can_be_quantized(module: nn.Module) -> bool:
    """Whether `quantized` knows this kind of layer: one of `KINDS`, or a subclass with the same forward."""
    return isinstance(module, Quantized) or _kind_of(module) is not None


def _kind_of(module: nn.Module) -> type[nn.Module] | None:
    return next((k for k in KINDS if isinstance(module, k) and type(module).forward is k.forward), None)


def quantized(
    module: nn.Module,
    *,
    weight_name: str = "",
    weight_bits: int,
    group_size: int,
    weight_symmetric: bool,
    input_quantizer: ActivationQuantizer | None,
) -> Quantized:
    """Let ``module`` be a `Quantized` layer: the same object with the same parameters under another class.

    A layer that is quantized already takes the new settings and forgets its old grid.
    raises: ValueError where `can_be_quantized` says no.
    """
    if not isinstance(module, Quantized):
        kind = _kind_of(module)
        if kind is None:
            raise ValueError(f"a {type(module).__name__} cannot be quantized")
        own = type(module) is not kind  # a subclass keeps what else it has
        new = type(f"Quantized{type(module).__name__}", (Quantized, type(module)), {}) if own else KINDS[kind]
        module.__class__ = new
    assert isinstance(module, Quantized)
    module.weight_name, module.weight_bits, module.group_size = weight_name, weight_bits, group_size
    module.weight_symmetric = weight_symmetric
    module.input_quantizer = None if isinstance(module, nn.Embedding) else input_quantizer
    module.register_buffer("weight_scale", None)
    module.register_buffer("weight_zero_point", None)
    return module


def quantized_layers(model: nn.Module) -> dict[str, Quantized]:
    """The quantized layers of ``model`` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}
