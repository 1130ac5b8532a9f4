"""Quantized layers that write themselves into an ONNX graph: each takes the place of its layer while torch exports.

Two ways of writing what runs in integers:

- ``standard``: QuantizeLinear and DequantizeLinear around an ordinary MatMul, Gemm or Conv (QDQ), which every runtime
  understands and onnxruntime fuses into integer kernels.
- ``onnxruntime``: its own operator for a product of integers with scales and bias, one kernel instead of two.

A layer in ``plain`` is written with MatMulInteger or ConvInteger, for places where onnxruntime would not fuse QDQ.
Activations are unsigned and weights signed 8-bit integers: onnxruntime has fast x86 kernels for no other pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .forms import Form, InputGrid

LEVELS = "levels"  # the name that a layer's integers have in the graph: <layer>.levels
_OWN = "com.microsoft"


def operator(
    name: str, inputs: Sequence[Tensor | None], like: Tensor | torch.dtype, shape: Sequence, **settings
) -> Tensor:
    """One ONNX operator in the graph that torch is exporting. name: ``Op`` or ``domain::Op``."""
    from torch.onnx.ops import symbolic

    dtype = like if isinstance(like, torch.dtype) else like.dtype
    return symbolic(name, inputs, settings, dtype=dtype, shape=shape, version=1 if "::" in name else None)


class _Written(nn.Module):
    """What the layers share: their integers as buffers, and the rounding of what flows in."""

    grid: InputGrid | None
    plain: bool
    operators: str
    levels: Tensor
    weight_step: Tensor
    weight_zero: Tensor | None
    input_step: Tensor
    input_zero: Tensor
    bias: Tensor | None
    bias_step: Tensor
    bias_levels: Tensor

    def _hold(self, form: Form, *, operators: str, plain: bool) -> None:
        self.grid, self.operators, self.plain = form.input, operators, plain
        self.group = form.group
        if self.grid is not None and not self.grid.dynamic:
            self.register_buffer("input_step", torch.tensor(self.grid.scale))
            self.register_buffer("input_zero", torch.tensor(self.grid.zero_point, dtype=torch.uint8))

    def _quantized(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(levels, scale, zero point) of the input."""
        assert self.grid is not None
        if self.grid.dynamic:
            from torch.onnx.ops import symbolic_multi_out

            kinds, shapes = [torch.uint8, torch.float32, torch.uint8], [x.shape, [], []]
            found = symbolic_multi_out("DynamicQuantizeLinear", (x,), dtypes=kinds, shapes=shapes)
            return found[0], found[1], found[2]
        if self.grid.narrow:
            x = x.clamp(*self.grid.ends)
        given = (x, self.input_step, self.input_zero)
        return operator("QuantizeLinear", given, torch.uint8, x.shape), self.input_step, self.input_zero

    def _rounded(self, x: Tensor) -> Tensor:
        """The input on its grid, as QuantizeLinear → DequantizeLinear; unchanged where only weights are on grids."""
        if self.grid is None:
            return x
        if (
            self.group
        ):  # in float: onnxruntime would take QDQ beside a weight with blocks for something it can fuse
            step, zero = self.input_step, self.grid.zero_point
            return ((x / step).round() + zero).clamp(self.grid.low, self.grid.high).sub(zero) * step
        return operator("DequantizeLinear", self._quantized(x), torch.float32, x.shape)

    def _zeros(self) -> Tensor:
        """The weight's zero points, written out also where all are 0: onnxruntime fuses no Gemm without them."""
        return (
            torch.zeros_like(self.weight_step, dtype=torch.int8)
            if self.weight_zero is None
            else self.weight_zero
        )

    def _dequantized_blocks(self, axis: int, features: int) -> Tensor:
        """The weight where `group` entries along `axis` share a scale; `_filled` has filled up the last of them."""
        given, blocks = (
            (self.levels, self.weight_step, self._zeros()),
            {"axis": axis, "block_size": self.group},
        )
        whole = operator("DequantizeLinear", given, torch.float32, self.levels.shape, **blocks)
        return whole if self.levels.shape[axis] == features else whole.narrow(axis, 0, features)

    def _scaled(self, sums: Tensor, step: Tensor, shape: Sequence[int]) -> Tensor:
        """Integer sums as float32 values with the bias."""
        y = operator("Cast", (sums,), torch.float32, sums.shape, to=1)
        y = y * (step * self.weight_step.reshape(shape))
        return y if self.bias is None else y + self.bias.reshape(shape)

    def _bias_as_integers(self) -> Tensor:
        """The bias on the grid of the products, for operators that take it in integers only."""
        step = self.bias_step
        return operator("DequantizeLinear", (self.bias_levels, step), step, step.shape, axis=0)

    def _hold_integer_bias(self) -> None:
        """Its error is at most half a step of the products: about 1e-5 of what flows out."""
        if self.bias is not None and self.grid is not None and not self.grid.dynamic:
            step = self.weight_step * self.grid.scale
            limit = float(2**31 - 128)  # of the int32 levels, as float32 counts
            self.register_buffer("bias_step", step)
            self.register_buffer(
                "bias_levels", (self.bias.detach() / step).round().clamp(-limit, limit).int()
            )


class WrittenLinear(_Written, nn.Linear):
    """A linear layer. The integers lie in the graph as [in, out]."""

    def hold(self, form: Form, *, operators: str, plain: bool) -> None:
        """Take over the integers of ``form``."""
        self._hold(form, operators=operators, plain=plain)
        self.register_buffer(LEVELS, _filled(form).t().contiguous())
        groups = form.scale.t().contiguous()  # [groups, out]
        self.register_buffer("weight_step", groups if form.group else groups[0])
        zero = None if form.zero_point is None else form.zero_point.t().contiguous()
        self.register_buffer("weight_zero", zero if zero is None or form.group else zero[0])
        self._hold_integer_bias()

    def forward(self, input: Tensor) -> Tensor:
        shape = [*input.shape[:-1], self.out_features]
        if self.grid is None or self.group:
            return self._in_float(input, shape)
        if self.plain or self.grid.dynamic:
            levels, step, zero = self._quantized(input)
            given = (levels, self.levels, zero, self.weight_zero)[: 4 if self.weight_zero is not None else 3]
            sums = operator("MatMulInteger", given, torch.int32, shape)
            return self._scaled(sums, step, [-1])
        if self.operators == "onnxruntime":
            levels, step, zero = self._quantized(input)
            given = (levels, self.levels, step, self.weight_step, zero, self.weight_zero, self.bias)
            return operator(f"{_OWN}::MatMulIntegerToFloat", given, torch.float32, shape)
        return self._in_qdq(input, shape)

    def _in_qdq(self, x: Tensor, shape: list[Any]) -> Tensor:
        weight = self._weight()
        if (
            x.dim() == 2
        ):  # onnxruntime makes a Gemm of it before it looks for integers, unless it is one already
            given = (self._rounded(x), weight, *([self._bias_as_integers()] if self.bias is not None else []))
            return operator("Gemm", given, torch.float32, shape)
        y = operator("MatMul", (self._rounded(x), weight), torch.float32, shape)
        return y if self.bias is None else y + self.bias

    def _in_float(self, x: Tensor, shape: list[Any]) -> Tensor:
        y = operator("MatMul", (self._rounded(x), self._weight()), torch.float32, shape)
        return y if self.bias is None else y + self.bias

    def _weight(self) -> Tensor:
        """float32 [in, out]."""
        if not self.group:
            given = (self.levels, self.weight_step, self._zeros())
            return operator("DequantizeLinear", given, torch.float32, self.levels.shape, axis=1)
        return self._dequantized_blocks(0, self.in_features)


class _WrittenConvolution(_Written):
    """A convolution of any number of dims."""

    def hold(self, form: Form, *, operators: str, plain: bool) -> None:
        """Take over the integers of ``form``."""
        self._hold(form, operators=operators, plain=plain)
        self.register_buffer(LEVELS, _filled(form))
        self.features = form.levels.shape[1]
        kernel = form.levels.shape[2:]  # scales of blocks have all other dims of the weight
        self.register_buffer("weight_step", _of_kernel(form.scale, kernel) if form.group else form.row_scale)
        zero = _of_kernel(form.zero_point, kernel) if form.group else form.row_zero_point
        self.register_buffer("weight_zero", zero)
        if not form.group:
            self._hold_integer_bias()

    def forward(self, input: Tensor) -> Tensor:
        layer: Any = self
        pads = layer._reversed_padding_repeated_twice  # last dim first, both of its sides
        if layer.padding_mode != "zeros":
            input, pads = nn.functional.pad(input, pads, mode=layer.padding_mode), [0] * len(pads)
        sides = list(zip(pads[0::2], pads[1::2], strict=True))[::-1]
        settings = {
            "strides": list(layer.stride),
            "dilations": list(layer.dilation),
            "group": layer.groups,
            "pads": [before for before, _ in sides] + [after for _, after in sides],
            "kernel_shape": list(layer.kernel_size),
        }
        shape = [input.shape[0], layer.out_channels, *_lengths(layer, input, sides)]
        if self.grid is not None and not self.group and (self.plain or self.grid.dynamic):
            levels, step, zero = self._quantized(input)
            given = (levels, self.levels, zero, self.weight_zero)[: 4 if self.weight_zero is not None else 3]
            sums = operator("ConvInteger", given, torch.int32, shape, **settings)
            return self._scaled(sums, step, [1, -1, *[1] * len(layer.kernel_size)])
        bias = self.bias if self.grid is None or self.group or self.bias is None else self._bias_as_integers()
        given = (self._rounded(input), self._weight(), *([bias] if bias is not None else []))
        return operator("Conv", given, torch.float32, shape, **settings)

    def _weight(self) -> Tensor:
        if self.group:
            return self._dequantized_blocks(1, self.features)
        given = (self.levels, self.weight_step, self._zeros())
        return operator("DequantizeLinear", given, torch.float32, self.levels.shape, axis=0)


class WrittenConv1d(_WrittenConvolution, nn.Conv1d):
    """A one-dimensional convolution."""


class WrittenConv2d(_WrittenConvolution, nn.Conv2d):
    """A two-dimensional convolution."""


class WrittenEmbedding(_Written, nn.Embedding):
    """An embedding: integers are looked up, and only those become float."""

    bias = None

    def hold(self, form: Form, *, operators: str, plain: bool) -> None:
        """Take over the integers of ``form``."""
        self._hold(form, operators=operators, plain=plain)
        self.register_buffer(LEVELS, form.levels)
        self.register_buffer("weight_step", form.scale)
        self.register_buffer("weight_zero", form.zero_point)

    def forward(self, input: Tensor) -> Tensor:
        shape = [*input.shape, self.embedding_dim]
        levels = operator("Gather", (self.levels, input), torch.int8, shape, axis=0)
        values = operator("Cast", (levels,), torch.float32, shape, to=1)
        if self.weight_zero is not None:
            values = values - self._of_rows(self.weight_zero.float(), input)
        return values * self._of_rows(self.weight_step, input)

    def _of_rows(self, of_groups: Tensor, rows: Tensor) -> Tensor:
        found = nn.functional.embedding(rows, of_groups)  # [..., groups]
        if not self.group:
            return found
        return found[..., torch.arange(self.embedding_dim) // self.group]


def _filled(form: Form) -> Tensor:
    """The levels, their last group of input features filled up with zeros: blocks in ONNX are all of one length."""
    short = -form.levels.shape[1] % form.group if form.group else 0
    return nn.functional.pad(form.levels, [0, 0] * (form.levels.dim() - 2) + [0, short])


def _of_kernel(values: Any, kernel: torch.Size) -> Any:
    return None if values is None else values.expand(*values.shape[:2], *kernel).contiguous()


def _lengths(layer: Any, x: Tensor, sides: Sequence[tuple[int, int]]) -> list[Any]:
    """Output lengths of a convolution in each of its dims."""
    dims = zip(x.shape[2:], sides, layer.kernel_size, layer.stride, layer.dilation, strict=True)
    return [(n + a + b - d * (k - 1) - 1) // s + 1 for n, (a, b), k, s, d in dims]


KINDS: dict[type[nn.Module], type[_Written]] = {
    nn.Linear: WrittenLinear,
    nn.Conv1d: WrittenConv1d,
    nn.Conv2d: WrittenConv2d,
    nn.Embedding: WrittenEmbedding,
}


def write(layer: nn.Module, form: Form, *, operators: str, plain: bool) -> None:
    """Let ``layer`` write itself into ONNX from now on: the same object under another class."""
    layer.__class__ = next(made for kind, made in KINDS.items() if isinstance(layer, kind))
    layer.hold(form, operators=operators, plain=plain)  # pyright: ignore[reportCallIssue]
