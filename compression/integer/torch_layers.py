"""Quantized layers on torch's integer kernels (oneDNN on a CPU: VNNI and AMX where the processor has them).

A layer is replaced by one that holds its integers, packed once for the processor, and no float weight. Results are
those of the training graph but for the rounding of float32 sums: products and their sums are exact integers, on
processors whose kernels overflow (see `overflows`) by multiplying an input in two halves.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ConfigError, NoOpError
from ..quantization.grid import affine_grid, symmetric_scale
from ..quantization.modules import Quantized, quantized_layers
from .forms import UNSIGNED, Form, InputGrid, read
from .onnx_export import Layer

_SIXTEEN_BITS = 2**15 - 1
_FLOAT = (1.0, 0, torch.float32, "none", [], "")  # how kernels give back: float32, nothing fused behind them


@cache
def overflows() -> bool:
    """Whether oneDNN's kernels on this processor add two products of bytes in 16 bits, as those without VNNI do.

    source: https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html; pytorch issue 103646.
    """
    largest = torch.full((64, 64), 127, dtype=torch.int8)
    weight = torch.ops.onednn.qlinear_prepack(largest, None)
    given = (torch.full((64, 64), 255, dtype=torch.uint8), 1.0, 0, weight, torch.ones(64))
    found = torch.ops.onednn.qlinear_pointwise(*given, torch.zeros(64, dtype=torch.int64), None, *_FLOAT)
    return bool((found != 64 * 127 * 255).any())


class IntegerLayer(nn.Module, ABC):
    """What integer layers share: the rounding of what flows in, and what is added where weights have zero points."""

    def __init__(self, form: Form, bias: Tensor | None) -> None:
        super().__init__()
        assert form.input is not None
        self.grid: InputGrid = form.input
        self.bits = form.bits
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.step = form.row_scale
        self.zero = None if form.row_zero_point is None else form.row_zero_point.float()
        self.no_zeros = torch.zeros(len(self.step), dtype=torch.int64)
        self.in_halves = 2 * 255 * int(form.levels.int().abs().max()) > _SIXTEEN_BITS and overflows()

    def product(self, q: Tensor, scale: float, zero: int, bias: Tensor | None) -> Tensor:
        """float32 of the exact integers ``(q - zero) · weight``, times the scales, and the bias.

        cost: two products where one would overflow: of the upper seven bits, and of what is left.
        """
        if not self.in_halves:
            return self._once(q, scale, zero, bias)
        half = q >> 1
        return self._once(half, scale, zero, bias).add_(self._once(q - half, scale, 0, None))

    @abstractmethod
    def _once(self, q: Tensor, scale: float, zero: int, bias: Tensor | None) -> Tensor:
        """``product`` by one call of the kernel."""

    def levels_of(self, x: Tensor) -> Tensor:
        """uint8 levels of an input, on the layer's one grid."""
        if self.grid.narrow:
            x = x.clamp(*self.grid.ends)
        return to_unsigned(x.float().contiguous(), self.grid.scale, self.grid.zero_point)

    def levels_of_rows(self, x: Tensor, row_dims: int) -> tuple[Tensor, Tensor, Tensor]:
        """(levels, scale, zero point): each row of the last `row_dims` dims on the grid of its own range."""
        dims = tuple(range(x.dim() - row_dims, x.dim()))
        low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
        if self.grid.symmetric:
            scale = symmetric_scale(torch.maximum(low.abs(), high.abs()), 8)
            zero = torch.full_like(scale, UNSIGNED)
            return (x / scale).round_().add_(zero).clamp_(1, 255).to(torch.uint8), scale, zero
        scale, zero_point = affine_grid(low, high, 8)
        return (x / scale).round_().add_(zero_point).clamp_(0, 255).to(torch.uint8), scale, zero_point.float()


class IntegerLinear(IntegerLayer):
    """A linear layer. dynamic: each row (a token) is rounded on the grid of its own range, as in training."""

    def __init__(self, layer: nn.Linear, form: Form) -> None:
        super().__init__(form, layer.bias)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = torch.ops.onednn.qlinear_prepack(form.levels, None)
        self.sums = form.levels.sum(dim=1).float() * self.step  # of each output's weights

    def forward(self, input: Tensor) -> Tensor:
        if self.grid.dynamic:
            return self._of_rows(input)
        q = self.levels_of(input)
        y = self.product(q, self.grid.scale, self.grid.zero_point, self.bias)
        if self.zero is not None:
            moved = q.sum(-1, keepdim=True, dtype=torch.int32) - self.in_features * self.grid.zero_point
            y -= moved * self.grid.scale * (self.step * self.zero)
        return y

    def _once(self, q: Tensor, scale: float, zero: int, bias: Tensor | None) -> Tensor:
        given = (q, scale, zero, self.weight, self.step, self.no_zeros, bias)
        return torch.ops.onednn.qlinear_pointwise(*given, *_FLOAT)

    def _of_rows(self, x: Tensor) -> Tensor:
        q, scale, zero = self.levels_of_rows(x, 1)
        y = self.product(q, 1.0, 0, None)
        y -= zero * self.sums
        if self.zero is not None:
            y -= (q.sum(-1, keepdim=True, dtype=torch.int32) - self.in_features * zero) * (
                self.step * self.zero
            )
        y *= scale
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class IntegerConv(IntegerLayer):
    """A convolution of one or two dims. dynamic: each image on its own grid, symmetric ones only (padding is zero)."""

    def __init__(self, layer: Any, form: Form) -> None:
        super().__init__(form, layer.bias)
        dims, kernels = len(layer.kernel_size), torch.ops.onednn
        self.kernel = {1: kernels.qconv1d_pointwise, 2: kernels.qconv2d_pointwise}[dims]
        self.shape = tuple(form.levels.shape)
        self.mode, self.pads, padding = layer.padding_mode, None, layer.padding
        if self.mode != "zeros" or isinstance(padding, str):
            self.pads, padding = layer._reversed_padding_repeated_twice, [0] * dims
        self.geometry = [list(layer.stride), list(padding), list(layer.dilation), layer.groups]
        scale, zero = (1.0, UNSIGNED) if self.grid.dynamic else (self.grid.scale, self.grid.zero_point)
        self.weight = kernels.qconv_prepack(form.levels, self.step, scale, zero, *self.geometry, None)

    def forward(self, input: Tensor) -> Tensor:
        if self.pads is not None:
            input = functional.pad(input, self.pads, mode="constant" if self.mode == "zeros" else self.mode)
        if not self.grid.dynamic:
            return self._moved(self.levels_of(input), self.grid.scale, self.grid.zero_point, self.bias)
        q, scale, _ = self.levels_of_rows(input, input.dim() - 1)
        y = self._moved(q, 1.0, UNSIGNED, None) * scale
        return y if self.bias is None else y + self._per_channel(self.bias)

    def _once(self, q: Tensor, scale: float, zero: int, bias: Tensor | None) -> Tensor:
        given = (q, scale, zero, self.weight, self.step, self.no_zeros, bias, *self.geometry)
        return self.kernel(*given, *_FLOAT).contiguous()

    def _moved(self, q: Tensor, scale: float, zero: int, bias: Tensor | None) -> Tensor:
        y = self.product(q, scale, zero, bias)
        if self.zero is not None:
            y -= self._windows((q.float() - zero) * scale) * self._per_channel(self.step * self.zero)
        return y

    def _windows(self, x: Tensor) -> Tensor:
        """What each output sees of its inputs, summed: [rows, out, …]."""
        groups = self.geometry[3]
        ones = torch.ones(groups, *self.shape[1:])
        convolve = functional.conv1d if x.dim() == 3 else functional.conv2d
        return convolve(x, ones, None, *self.geometry).repeat_interleave(self.shape[0] // groups, dim=1)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (len(self.shape) - 2))

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        return f"weight={list(self.shape)}, bits={self.bits}"


class IntegerEmbedding(nn.Module):
    """An embedding whose table is integers; the rows that are looked up become float."""

    levels: Tensor
    step: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.bits, self.group = form.bits, form.group
        self.register_buffer("levels", form.levels)
        self.register_buffer("step", form.scale)
        self.zero = form.zero_point
        self.features = torch.arange(form.levels.shape[1]) // (form.group or form.levels.shape[1])

    def forward(self, input: Tensor) -> Tensor:
        values = functional.embedding(input, self.levels).float()
        if self.zero is not None:
            values -= self._of_rows(self.zero, input).float()
        return values * self._of_rows(self.step, input)

    def _of_rows(self, of_groups: Tensor, rows: Tensor) -> Tensor:
        found = of_groups[rows]
        return found[..., self.features] if self.group else found

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        return f"{', '.join(map(str, self.levels.shape))}, bits={self.bits}"


def to_unsigned(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """uint8 levels of ``x`` (float32), values beyond the ends on the ends. cost: one pass."""
    return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8).int_repr()


def in_integers(model: nn.Module, *, float_layers: Sequence[str] = ()) -> dict[str, Layer]:
    """Put integer layers in the place of the model's quantized layers.

    Layers whose weights alone are quantized stay as they are, and compute in float as in training.
    float_layers: patterns of names of layers with rounded inputs that may compute in float.
    returns: layer → how it runs.
    raises:  NoOpError naming layers that were to compute in integers and cannot; ConfigError where this torch has no
             integer kernels, or no layer is quantized.
    """
    layers = quantized_layers(model)
    if not layers:
        raise ConfigError(
            "export torch_int8: no layer is quantized; quantize some, or export safetensors or packed"
        )
    refuse_without_kernels()
    refused, found = [], {}
    for name, layer in layers.items():
        form = read(name, layer)
        made = _made(layer, form)
        if made is not None:
            _put(model, name, made)
        elif form.input is not None and not any(fnmatchcase(name, pattern) for pattern in float_layers):
            refused.append(name)
        arithmetic = (
            "float" if made is None else "lookup" if isinstance(made, IntegerEmbedding) else "integer"
        )
        found[name] = Layer(operator=type(made or layer).__name__, arithmetic=arithmetic, bits=form.bits)
    if refused:
        shown = ", ".join(refused[:8]) + (f", … ({len(refused)} in all)" if len(refused) > 8 else "")
        raise NoOpError(
            f"export torch_int8: layers {shown} would compute in float: torch multiplies integers with one scale an "
            "output channel, and convolutions on grids found while they run only with symmetric ones; quantize them "
            "so, or allow it with float_layers"
        )
    return found


def refuse_without_kernels() -> None:
    """raises: ConfigError where this torch, or this processor, has no integer kernels of oneDNN."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise ConfigError(
            "export torch_int8: this torch was built without oneDNN's integer kernels; use a build that has them "
            "(x86 CPU), or export onnx"
        )
    with warnings.catch_warnings():  # torch says once in a process that a better way is to come
        warnings.simplefilter("ignore")
        to_unsigned(torch.zeros(1), 1.0, 0)


def _made(layer: Quantized, form: Form) -> nn.Module | None:
    """The integer layer; None where it computes in float."""
    if isinstance(layer, nn.Embedding):
        return IntegerEmbedding(form)
    if form.input is None or form.group:
        return None
    rows = layer.weight.dim() - 1 if form.input.dynamic else form.input.row_dims  # a token, an image
    if form.input.row_dims != rows:
        return None
    if isinstance(layer, nn.Linear):
        return IntegerLinear(layer, form)
    return None if form.input.dynamic and not form.input.symmetric else IntegerConv(layer, form)


def _put(model: nn.Module, name: str, made: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, made.eval())
