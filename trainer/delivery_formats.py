"""The formats of an artifact: how each is written, and what the integer ones must show before they are delivered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..compression.integer.onnx_export import Layer
from ..dataloading import load_source
from .artifact import load, record, save_artifact
from .config import ExportConfig, RunConfig
from .models import BuiltModel
from .tasks import Task

NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript")}
"""Format → libraries that it takes."""
_ROWS = 16  # on which outputs are compared


def save(
    export: ExportConfig,
    folder: Path,
    config: RunConfig,
    built: BuiltModel,
    tensors: Mapping[str, Tensor],
    plan: Sequence[Mapping[str, Any]],
    task: Task,
) -> dict[str, Any]:
    """Write one artifact; of an integer format, compare its outputs with those of ``built.module`` on real rows.

    built:   the model with its final weights.
    returns: for integer formats {"arithmetic": layers of each kind, "agreement": …}, for the others {}.
    raises:  NoOpError naming layers that would compute in float, or where outputs are too far apart.
    """
    common: dict[str, Any] = {"model_spec": built.spec, "plan": plan}
    if export.format in ("safetensors", "packed"):
        save_artifact(folder, tensors=tensors, format=export.format, **common)
        return {}
    rows = some_rows(config, task)
    if export.format == "onnx":
        layers = _save_onnx(export, folder, built, rows, common)
    else:
        layers = _save_torch(export, folder, built, tensors, common)
    from ..compression.integer.agreement import compare

    found = compare(built.module, load(folder, trust_factory=True), rows, what=export.format)
    record(folder, agreement=found.as_json())
    return {"arithmetic": arithmetic(layers.values()), "agreement": found.as_json()}


def _save_onnx(
    export: ExportConfig, folder: Path, built: BuiltModel, rows: Any, common: Mapping[str, Any]
) -> dict[str, Layer]:
    from ..compression.integer.onnx_export import export_onnx
    from .artifact_onnx import save_onnx

    exported = export_onnx(built.module, rows, operators=export.operators, float_layers=export.float_layers)
    save_onnx(folder, exported, **common)
    return exported.layers


def _save_torch(
    export: ExportConfig,
    folder: Path,
    built: BuiltModel,
    tensors: Mapping[str, Tensor],
    common: Mapping[str, Any],
) -> dict[str, Layer]:
    import copy

    from ..compression.integer.torch_layers import in_integers

    layers = in_integers(
        copy.deepcopy(built.module), float_layers=export.float_layers
    )  # before anything is written
    extra = {"float_layers": list(export.float_layers)}
    save_artifact(folder, tensors=tensors, format="torch_int8", extra=extra, **common)
    return layers


def arithmetic(layers: Iterable[Layer]) -> dict[str, int]:
    """How many layers run how: {"integer, 8 bits": 37, "lookup, 8 bits": 3}."""
    return dict(Counter(f"{layer.arithmetic}, {layer.bits} bits" for layer in layers))


def some_rows(config: RunConfig, task: Task) -> Tensor | dict[str, Tensor]:
    """The model's inputs for a few held-out rows (training rows where none are held out)."""
    source = load_source(config.data.spec(), "test")
    if source is None or not len(source):
        source = load_source(config.data.spec(), "train")
    return task.inputs(source.gather(np.arange(min(_ROWS, len(source)))))


def what_is_missing(format: str) -> str | None:
    """What to install before artifacts of ``format`` can be made; None where all is there."""
    missing = [name for name in NEEDED.get(format, ()) if find_spec(name) is None]
    if not missing:
        return None
    return (
        f"export: format {format} needs {', '.join(missing)}, which cannot be imported; install with "
        f"pip install 'forgepress[{format}]'"
    )
