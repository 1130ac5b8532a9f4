"""`forgepress convert`: plain weights of a run or checkpoint for other programs, whatever engine and mesh wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from .artifact_files import in_one_move
from .export import final_tensors

FORMATS = ("safetensors", "transformers")


def convert(path: str | Path, folder: str | Path, *, format: str = "safetensors") -> Path:
    """Write the model of a run folder (its newest whole checkpoint) or of ``checkpoints/step-N`` into a new folder.

    format: ``safetensors``: model.safetensors with the model's own names, and model.json with how it is built;
        ``transformers``: a folder that transformers' ``from_pretrained`` reads, for models that come from there.
    The model is that of the phase's end: masks applied, removals done, as artifacts have it.
    raises: ConfigError for another format, a model that is not of transformers, a folder that has content;
        CheckpointError where there is no whole checkpoint, or transformers would read other weights back.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: unknown; want {' or '.join(FORMATS)}")
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} holds files already; give a new folder")
    final = final_tensors(path)
    stored = final.built.module.state_dict().keys()
    tensors = {name: t.detach().cpu() for name, t in final.tensors.items() if name in stored}
    with in_one_move(target) as partial:
        if format == "transformers":
            _transformers(partial, final.built.module, final.built.spec, tensors)
        else:
            about = {"model": final.built.spec, "plan": final.plan}
            _write(partial / "model.safetensors", tensors)
            (partial / "model.json").write_text(json.dumps(about, indent=1))
    return target


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    # A name that shares its memory with another (tied weights) is stored on its own: readers need not know of ties.
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, file, {"format": "pt"})


def _transformers(folder: Path, module: Any, spec: Any, tensors: Mapping[str, Tensor]) -> None:
    if not isinstance(spec, Mapping) or "transformers" not in spec:
        raise ConfigError(
            "--format transformers: the model is not one of transformers; use --format safetensors"
        )
    from .artifact import fill

    fill(module, tensors)
    module.save_pretrained(folder, safe_serialization=True)
    _prove(folder, type(module), tensors)


def _prove(folder: Path, kind: Any, tensors: Mapping[str, Tensor]) -> None:
    """Read it back as others would. raises: CheckpointError where that gives another model."""
    try:
        read = kind.from_pretrained(folder, use_safetensors=True, trust_remote_code=False).state_dict()
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"transformers cannot hold this model: {str(error).splitlines()[0]}; layers that compression has "
            "changed have no place in its config: use --format safetensors, or forgepress export"
        ) from error
    for name, tensor in tensors.items():
        there = read.get(name)
        if there is None or there.shape != tensor.shape or not torch.equal(there, tensor.to(there.dtype)):
            raise CheckpointError(
                f"transformers reads another {name} back than the run has (want {tuple(tensor.shape)}); layers that "
                "compression has changed have no place in its config: use --format safetensors, or forgepress export"
            )
