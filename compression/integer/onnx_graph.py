"""What is done to an exported ONNX graph, and what onnxruntime makes of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .onnx_layers import LEVELS

INTEGER = {
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
"""onnxruntime's operators that multiply integers."""
SLOW_FUSIONS = ("SkipLayerNormFusion",)
"""Optimizations that make a graph slower: on a CPU, onnxruntime's fused addition and LayerNorm takes twice the time."""
_SIGNED = 3  # int8 in ONNX's numbering
LARGEST_FILE = 2**31 - 2**24  # bytes of a protobuf message, less some room


def session_options(threads: int = 0, *, exact: bool = True) -> Any:
    """onnxruntime's options as artifacts are run.

    threads: inside operators; 0: as many as there are cores.   exact: False lets products overflow on some processors.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # layers with integer weights alone compute on floats, as they did in training; 4 would round their inputs too
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if exact:
        # processors without VNNI add products of bytes in 16 bits, which overflow: there unsigned weights, slower
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def without_traces(model: Any) -> None:
    """Remove where in which source file each operator came from: bytes, and names of somebody's folders."""
    for part in (model.graph, *model.functions):
        part.doc_string = ""
        del part.metadata_props[:]
        for node in part.node:
            node.doc_string = ""
            del node.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        del value.metadata_props[:]


def own_zero_points(model: Any) -> None:
    """Give every DequantizeLinear of signed integers a zero point of its own.

    onnxruntime makes signed weights unsigned where the processor needs that (`session_options`), each zero point with
    the weight that it belongs to; one that several share is then made twice, which ends the session (1.31).
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        name = node.input[2] if node.op_type == "DequantizeLinear" and len(node.input) > 2 else ""
        if name not in held or held[name].data_type != _SIGNED:
            continue
        if name in taken:
            own = model.graph.initializer.add()
            own.CopyFrom(held[name])
            own.name = node.input[2] = f"{node.input[0]}.zero_point_{len(taken)}"
        taken.add(node.input[2])


def name_axes(model: Any, names: Mapping[str, Sequence[str]]) -> dict[str, list[str | int]]:
    """Give free axes of the inputs the names that ``names`` has for them (input → name of each axis), everywhere.

    returns: input → its shape, names where an axis is free and lengths where it is not.
    """
    renamed: dict[str, str] = {}
    for value in model.graph.input:
        for dim, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=True):
            if dim.HasField("dim_param"):
                renamed.setdefault(dim.dim_param, name)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, renamed)) + r")\b") if renamed else None
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if pattern is not None and dim.HasField("dim_param"):
                dim.dim_param = pattern.sub(lambda found: renamed[found[1]], dim.dim_param)
    return {
        value.name: [
            dim.dim_param if dim.HasField("dim_param") else dim.dim_value
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in model.graph.input
    }


def store_in_few_bits(model: Any, bits: Mapping[str, int]) -> None:
    """Store the int8 initializers named in ``bits`` with 4 or 2 bits; onnxruntime unpacks them once, while it loads.

    Four bits are ONNX's own int4 behind a Cast. Two bits are uint8, four levels in each (lowest bits first), behind
    shifts: the graph stays one of opset 21. The kernels that multiply them are those of 8 bits.
    """
    from onnx import TensorProto, helper, numpy_helper

    found = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for name, width in bits.items():
        if width == 8 or name not in found:
            continue
        levels = numpy_helper.to_array(found[name])
        model.graph.initializer.remove(found[name])
        if width == 4:
            halves = np.append(levels.reshape(-1), np.zeros(levels.size % 2, np.int8)).view(np.uint8) & 15
            packed = halves[0::2] | halves[1::2] << 4
            tensor = helper.make_tensor(
                f"{name}.packed", TensorProto.INT4, levels.shape, packed.tobytes(), raw=True
            )
            model.graph.initializer.append(tensor)
            nodes.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.INT8))
        else:
            codes = np.append(levels.reshape(-1), np.zeros(-levels.size % 4, np.int8)).view(np.uint8) & 3
            packed = (codes.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)).sum(1).astype(np.uint8)
            values = {"packed": packed, "shape": np.array(levels.shape), **_CONSTANTS}
            if levels.size % 4:
                values["size"] = np.array([levels.size])
            model.graph.initializer.extend(
                numpy_helper.from_array(value, f"{name}.{part}") for part, value in values.items()
            )
            nodes.extend(_unpack_two_bits(name, cut=bool(levels.size % 4)))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


_CONSTANTS = {
    "last": np.array([-1]),
    "first": np.array([0]),
    "shifts": np.array([0, 2, 4, 6], np.uint8),
    "mask": np.array(3, np.uint8),
    "sign": np.array(2, np.int8),
}


def _unpack_two_bits(name: str, *, cut: bool) -> list[Any]:
    """uint8 [n] → int8 of the final shape: shift each byte by 0, 2, 4, 6, keep two bits, extend the sign."""
    from onnx import TensorProto, helper

    def step(operator: str, inputs: Sequence[str], output: str, **settings: Any) -> Any:
        made = [f"{name}.{part}" if part else name for part in (*inputs, output)]
        return helper.make_node(operator, made[:-1], made[-1:], **settings)

    flat = "flat" if cut else "signed"
    steps = [
        step("Unsqueeze", ["packed", "last"], "column"),
        step("BitShift", ["column", "shifts"], "shifted", direction="RIGHT"),
        step("BitwiseAnd", ["shifted", "mask"], "codes"),
        step("Cast", ["codes"], "small", to=TensorProto.INT8),
        step("BitwiseXor", ["small", "sign"], "turned"),
        step("Sub", ["turned", "sign"], "signed"),
    ]
    if cut:
        steps.append(step("Reshape", ["signed", "last"], "all"))
        steps.append(step("Slice", ["all", "first", "size"], "flat"))
    return [*steps, step("Reshape", [flat, "shape"], "")]


def operators_of(model: Any, layers: Sequence[str]) -> dict[str, str]:
    """Layer → the operator that consumes its integers once onnxruntime has optimized the graph; "" where it is unused.

    layers: prefixes of the integers' names (``<layer>.levels``).   cost: one session, and the graph without weights.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        written = write(model, Path(folder) / "model.onnx")
        options = session_options(1, exact=False)  # the same answer, and so the same file, on every processor
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        onnxruntime.InferenceSession(
            str(written), options, providers=["CPUExecutionProvider"], disabled_optimizers=[*SLOW_FUSIONS]
        )
        graph = onnx.load(f"{folder}/optimized.onnx", load_external_data=False).graph
    consumers = {name: node.op_type for node in graph.node for name in node.input}
    return {
        layer: next(
            (
                operator
                for name, operator in consumers.items()
                if name == f"{layer}.{LEVELS}" or name.startswith(f"{layer}.{LEVELS}_")
            ),
            "",
        )
        for layer in layers
    }


def write(model: Any, path: Path) -> Path:
    """Writes the model, its weights in a second file where one would be too large for the format."""
    import onnx

    large = model.ByteSize() > LARGEST_FILE
    onnx.save_model(model, str(path), save_as_external_data=large, location=f"{path.name}.data")
    return path
