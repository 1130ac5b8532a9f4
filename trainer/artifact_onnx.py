"""Artifacts in ONNX: `model.onnx` beside artifact.json, and the module that runs it with onnxruntime.

ONNX files are data: operators of the standard and of onnxruntime itself, weights, nothing that is unpickled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..compression.integer.onnx_export import Exported
from ..compression.integer.onnx_graph import SLOW_FUSIONS, session_options, write
from ..errors import CheckpointError, ConfigError
from .artifact_files import digest, in_one_move, write_manifest

MODEL = "model.onnx"


class Outputs(dict):
    """A model's outputs by name, also as attributes: ``outputs.logits``."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no output {name!r}, only {', '.join(self)}") from None


class OnnxModel(nn.Module):
    """An ONNX file as a module: tensors in and out, on the CPU, with as many threads as torch uses.

    Called as the model was: with one tensor, or by keyword. Masks and token types that are left out are all ones and
    zeros, as transformers' own models have it. Returns a tensor where the model did, else `Outputs`.
    """

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """raises: CheckpointError where onnxruntime is not installed or cannot read the file."""
        super().__init__()
        self.path, self.inputs, self.outputs = path, list(inputs), list(outputs)
        self._session: Any = None
        self._threads = 0
        self._kinds: dict[str, Any] = {}
        self._start()

    def forward(self, *columns: Tensor, **named: Tensor) -> Any:
        """raises: ConfigError where an input is missing or unknown."""
        if self._threads != torch.get_num_threads():
            self._start()
        given = {**dict(zip(self.inputs, columns, strict=False)), **named}
        found = self._session.run(self.outputs, self._feed(given))
        tensors = [torch.from_numpy(value) for value in found]
        if self.outputs == ["output"]:
            return tensors[0]
        if all(name.startswith("output_") for name in self.outputs):
            return tuple(tensors)
        return Outputs(zip(self.outputs, tensors, strict=True))

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        return f"{self.path.name}: {', '.join(self.inputs)} → {', '.join(self.outputs)}"

    def _feed(self, given: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        if unknown := sorted(given.keys() - set(self.inputs)):
            raise ConfigError(
                f"{self.path}: takes no input {', '.join(unknown)}, only {', '.join(self.inputs)}"
            )
        missing = [name for name in self.inputs if name not in given and name not in _FILLED]
        if missing or not given:
            raise ConfigError(
                f"{self.path}: wants the inputs {', '.join(self.inputs)}; {', '.join(missing)} missing"
            )
        like = next(iter(given.values()))
        whole = {
            name: given[name] if name in given else torch.full_like(like, _FILLED[name])
            for name in self.inputs
        }
        return {
            name: x.detach().cpu().numpy().astype(self._kinds[name], copy=False) for name, x in whole.items()
        }

    def _start(self) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise CheckpointError(
                f"artifact {self.path.parent}: it runs with onnxruntime, which cannot be imported ({error}); "
                "install it with pip install 'forgepress[onnx]'"
            ) from error
        self._threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                str(self.path),
                session_options(self._threads),
                providers=["CPUExecutionProvider"],
                disabled_optimizers=[*SLOW_FUSIONS],
            )
        except Exception as error:  # onnxruntime has no error class of its own that one could name
            raise CheckpointError(
                f"artifact {self.path.parent}: onnxruntime cannot read it ({error})"
            ) from error
        self._kinds = {entry.name: _NUMPY.get(entry.type, np.float32) for entry in self._session.get_inputs()}


_FILLED = {"attention_mask": 1, "token_type_ids": 0}
_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def save_onnx(
    folder: str | Path,
    exported: Exported,
    *,
    model_spec: Mapping[str, Any] | str,
    plan: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes the artifact `folder` in one move, replacing an older one. raises: CheckpointError."""
    target = Path(folder)
    with in_one_move(target) as partial:
        write(exported.model, partial / MODEL)
        manifest = {
            "format": "onnx",
            "file": MODEL,
            "model": model_spec,
            "plan": list(plan),
            "tensors": {},
            "aliases": {},
            "sha256": digest(partial / MODEL),
            "inputs": exported.inputs,
            "outputs": exported.outputs,
            "layers": {name: asdict(layer) for name, layer in exported.layers.items()},
            **(extra or {}),
        }
        write_manifest(partial, manifest)


def load_onnx(folder: Path, manifest: Mapping[str, Any]) -> OnnxModel:
    """The model of an onnx artifact. raises: CheckpointError where the file is not the one artifact.json speaks of."""
    path = folder / MODEL
    try:
        found = digest(path)
        inputs, outputs = (
            [str(name) for name in manifest["inputs"]],
            [str(name) for name in manifest["outputs"]],
        )
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"artifact {folder}: {MODEL} cannot be read ({error}); export it again"
        ) from error
    if found != manifest["sha256"]:
        raise CheckpointError(
            f"artifact {folder}: {MODEL} is damaged or was exchanged (sha256 {found[:12]}…, artifact.json says "
            f"{manifest['sha256'][:12]}…); export it again, or copy the folder again"
        )
    return OnnxModel(path, inputs, outputs).eval()
