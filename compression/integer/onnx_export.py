"""A model as ONNX, its quantized layers in integers, and a check that none of them was left in float."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError, NoOpError
from ..quantization.modules import quantized_layers
from .forms import Form, read
from .onnx_graph import (
    INTEGER,
    name_axes,
    operators_of,
    own_zero_points,
    store_in_few_bits,
    without_traces,
)
from .onnx_layers import LEVELS, write

Operators = Literal["standard", "onnxruntime"]
OPSET = (
    23  # the first with an operator for attention, which saves onnxruntime a tenth of a transformer's time
)

_WITHOUT_ROTARY = 21  # the newest before ONNX's operator for rotary positions


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How one quantized layer runs in onnxruntime.

    arithmetic: ``integer``; ``lookup`` (an embedding: integers are looked up); ``float`` (its weights are stored as
                integers and computed with as floats, which was asked for); ``unused`` (no output depends on it).
    """

    operator: str
    arithmetic: Literal["integer", "lookup", "float", "unused"]
    bits: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX model: the onnx.ModelProto, names of what goes in and comes out, free axes, and its quantized layers."""

    model: Any
    inputs: dict[str, list[str | int]]
    outputs: list[str]
    layers: dict[str, Layer]


def export_onnx(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Tensor],
    *,
    operators: Operators = "standard",
    float_layers: Sequence[str] = (),
) -> Exported:
    """Write ``model`` as ONNX for onnxruntime, any number of rows (and, for integer inputs, of any length).

    inputs:       rows that it takes, as it takes them: one tensor, or by keyword. Their values do not matter.
    operators:    ``standard``: QDQ, which other runtimes read too; ``onnxruntime``: its own fused operators, faster.
    float_layers: patterns of names of layers with rounded inputs that may compute in float.
    raises:       ConfigError where torch cannot export the model; NoOpError naming layers that were to compute in
                  integers and would not.
    cost:         two copies of the weights; a second export where onnxruntime fuses some layer only in another form.
    """
    forms = {name: read(name, layer) for name, layer in quantized_layers(model).items()}
    example = dict(inputs) if isinstance(inputs, Mapping) else {"input": inputs}
    plain: frozenset[str] = frozenset()
    while True:
        proto, axes, outputs = _written(model, forms, example, isinstance(inputs, Mapping), operators, plain)
        layers = _layers(proto, forms)
        left = {name for name, layer in layers.items() if _stays_float(forms[name], layer)}
        if not left - plain or all(forms[name].group for name in left):
            break
        plain |= left  # the form that onnxruntime cannot fail to compute in integers, if not the fastest one
    refused = sorted(name for name in left if not any(fnmatchcase(name, p) for p in float_layers))
    if refused:
        raise NoOpError(_refusal(refused, forms))
    return Exported(model=proto, inputs=axes, outputs=outputs, layers=layers)


def _stays_float(form: Form, layer: Layer) -> bool:
    return form.input is not None and layer.arithmetic == "float"


def _refusal(names: list[str], forms: Mapping[str, Form]) -> str:
    shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
    groups = [name for name in names if forms[name].group]
    why = (
        "their scales are for groups of input features, and onnxruntime multiplies integers with one scale an output "
        "channel; quantize them with one scale a channel, or their weights alone"
        if groups
        else "onnxruntime has no integer kernel for them as they are used"
    )
    return f"export onnx: layers {shown} would compute in float: {why}; or allow it with float_layers"


def _layers(proto: Any, forms: Mapping[str, Form]) -> dict[str, Layer]:
    if not forms:
        return {}
    present = {tensor.name for tensor in proto.graph.initializer}
    there = [name for name in forms if {f"model.{name}.{LEVELS}", f"model.{name}.{LEVELS}.packed"} & present]
    found = operators_of(proto, [f"model.{name}" for name in there])
    layers = {}
    for name, form in forms.items():
        operator = found.get(f"model.{name}", "")
        if name not in there:
            arithmetic = "unused"
        elif operator in INTEGER and not form.group:
            arithmetic = "integer"
        else:
            arithmetic = "lookup" if operator == "Gather" else "float"
        layers[name] = Layer(operator=operator, arithmetic=arithmetic, bits=form.bits)
    return layers


def _written(
    model: nn.Module,
    forms: Mapping[str, Form],
    example: dict[str, Tensor],
    keywords: bool,
    operators: str,
    plain: frozenset[str],
) -> tuple[Any, dict[str, list[str | int]], list[str]]:
    """(onnx.ModelProto, input → axes, output names)."""
    whole = _Whole(copy.deepcopy(model).cpu().eval(), list(example) if keywords else None)
    columns = tuple(_distinct_rows(tensor, example) for tensor in example.values())
    with torch.no_grad():
        outputs = list(named_outputs(whole.model_outputs(columns)))
    for name, form in forms.items():
        write(whole.model.get_submodule(name), form, operators=operators, plain=name in plain)
    proto = _traced(whole, columns, list(example), outputs, OPSET)
    if any(node.op_type == "RotaryEmbedding" for node in proto.graph.node):
        # torch writes angles for one row, where this operator wants them for each: onnxruntime refuses two rows
        proto = _traced(whole, columns, list(example), outputs, _WITHOUT_ROTARY)
    without_traces(proto)
    store_in_few_bits(proto, {f"model.{name}.{LEVELS}": form.bits for name, form in forms.items()})
    own_zero_points(proto)
    axes = name_axes(proto, {name: _axis_names(tensor) for name, tensor in example.items()})
    return proto, axes, [value.name for value in proto.graph.output]


def _traced(
    whole: nn.Module, columns: tuple[Tensor, ...], inputs: list[str], outputs: list[str], opset: int
) -> Any:
    """What torch makes of the model: onnx.ModelProto. raises: ConfigError."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch about itself
            program = torch.onnx.export(
                whole,
                columns,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes={"columns": tuple(_free_axes(tensor) for tensor in columns)},
            )
    except Exception as error:  # torch raises errors of its own kinds, and of any kind out of the model
        cause = error.__cause__ or error
        raise ConfigError(f"export onnx: torch cannot export this model ({_first_lines(cause)})") from error
    assert program is not None
    return program.model_proto


class _Whole(nn.Module):
    """The model with positional inputs and a flat tuple of tensors as output."""

    def __init__(self, model: nn.Module, keywords: list[str] | None) -> None:
        super().__init__()
        self.model, self.keywords = model, keywords

    def forward(self, *columns: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_outputs(self.model_outputs(columns)).values())

    def model_outputs(self, columns: tuple[Tensor, ...]) -> Any:
        if self.keywords is None:
            return self.model(*columns)
        return self.model(**dict(zip(self.keywords, columns, strict=True)))


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """The tensors that a model returns, by name: a tensor, a mapping (as transformers' outputs), or a sequence."""
    if isinstance(outputs, Tensor):
        return {"output": outputs}
    if isinstance(outputs, Mapping):
        return {str(name): value for name, value in outputs.items() if isinstance(value, Tensor)}
    if isinstance(outputs, list | tuple):
        return {f"output_{i}": value for i, value in enumerate(outputs) if isinstance(value, Tensor)}
    raise ConfigError(
        f"export onnx: the model returns {type(outputs).__name__}; want tensors, by name or in a row"
    )


def _free_axes(tensor: Tensor) -> dict[int, Any]:
    free = torch.export.Dim.AUTO
    return {0: free, 1: free} if _is_sequence(tensor) else {0: free}


def _axis_names(tensor: Tensor) -> list[str]:
    return ["rows", *(["length"] if _is_sequence(tensor) else [])] + [""] * (
        tensor.dim() - 1 - _is_sequence(tensor)
    )


def _is_sequence(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and not tensor.is_floating_point()


def _distinct_rows(tensor: Tensor, example: Mapping[str, Tensor]) -> Tensor:
    """A few rows, in a number that no other dim has: equal lengths would be taken for one and the same axis."""
    taken = {length for other in example.values() for length in other.shape[1:]}
    rows = next(count for count in range(2, 99) if count not in taken)
    return tensor[torch.arange(rows) % tensor.shape[0]].cpu()


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:400] or type(error).__name__
