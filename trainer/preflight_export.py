"""What export would refuse when a run has ended, said before it begins."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from ..compression.quantization.modules import quantized_layers
from .config import RunConfig
from .config_errors import Path
from .delivery_formats import what_is_missing
from .preflight_rules import Found


def check_export(config: RunConfig, module: nn.Module | None, found: Found) -> None:
    """Every format can be written when the run ends: its libraries are here, and its kernels fit the layers.

    module: the model as its last phase prepares it; None where that is not known.
    """
    layers = {} if module is None else quantized_layers(module)
    names = [entry.name for phase in config.phases for entry in phase.techniques]
    floating = not layers and not any(name.startswith("quantization.") or ":" in name for name in names)
    for index, export in enumerate(config.export):
        path: Path = ("export", index, "format")
        if missing := what_is_missing(export.format):
            found.problem(path, missing)
        if export.format == "torch_int8" and floating:
            found.problem(
                path, "given torch_int8, but no phase quantizes a layer; want a quantization.* technique"
            )
        if export.format not in ("onnx", "torch_int8"):
            continue
        grouped = [
            name
            for name, layer in layers.items()
            if layer.group_size
            and layer.input_quantizer is not None
            and not any(fnmatchcase(name, pattern) for pattern in export.float_layers)
        ]
        if grouped:
            found.problem(
                path,
                f"given {export.format}, but {', '.join(grouped[:5])} round their inputs and have one scale for a "
                "group of weights, which no integer kernel multiplies: they would compute in float; want one scale for "
                "a channel, weights alone, or these layers in float_layers",
            )
