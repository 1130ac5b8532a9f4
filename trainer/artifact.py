"""The artifact: what a run delivers, as safetensors and JSON. The format is described in docs/artifact.md.

Nothing here unpickles, and nothing imports code that the artifact names unless the caller says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor, nn

from ..compression.encodings import Encoded, choose, encode, positive_zeros
from ..errors import CheckpointError, ConfigError
from .artifact_files import (
    MANIFEST,
    RESERVED,
    TENSORS,
    describe,
    digest,
    in_one_move,
    read_manifest,
    read_tensors,
    write_manifest,
    write_tensors,
)

if TYPE_CHECKING:
    from .models import BuiltModel

__all__ = ["find_artifact", "folder_bytes", "load", "load_built", "read_artifact", "record", "save_artifact"]

Format = Literal["safetensors", "packed", "torch_int8"]
Factory = Callable[..., nn.Module]


def save_artifact(
    folder: str | Path,
    *,
    tensors: Mapping[str, Tensor],
    model_spec: Mapping[str, Any] | str,
    plan: Sequence[Mapping[str, Any]],
    format: Format,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Writes the artifact `folder` in one move, replacing an older one; gives the bytes of all its files.

    tensors:    name → whole tensor (no DTensor), parameters and buffers as in the model's state_dict. Names that
                share one storage (tied weights) are stored once.
    model_spec: what `models.build_model` takes; plan: the list of records that `compression.replay` takes.
    format:     "safetensors" stores every tensor as it is; "packed" takes the smallest exact encoding of each and
                writes -0.0 as 0.0; "torch_int8" is packed, and loads as a model that computes in integers.
    extra:      JSON that is kept with it, such as {"metrics": {…}}.
    raises:     ConfigError for another format; CheckpointError where the folder cannot be written.
    """
    if format not in get_args(Format):
        raise ConfigError(f"export: format={format!r} is unknown; want {', '.join(get_args(Format))}")
    _refuse_reserved(extra or {})
    target = Path(folder)
    with in_one_move(target) as partial:
        aliases, encoded = _encode_all(tensors, format)
        write_tensors(partial / TENSORS, encoded)
        manifest = {
            "format": format,
            "model": model_spec,
            "plan": list(plan),
            "tensors": {name: describe(name, entry) for name, entry in encoded.items()},
            "aliases": aliases,
            "sha256": digest(partial / TENSORS),
            **(extra or {}),
        }
        write_manifest(partial, manifest)
        # safetensors makes its file for its owner only; both files get what the user's umask says
        (partial / TENSORS).chmod((partial / MANIFEST).stat().st_mode & 0o777)
    return folder_bytes(target)


def record(folder: str | Path, **values: Any) -> int:
    """Adds `values` (metrics of the reloaded artifact, latency) to artifact.json; gives the folder's bytes."""
    _refuse_reserved(values)
    path = find_artifact(folder)
    write_manifest(path, {**read_manifest(path), **values})
    return folder_bytes(path)


def load(
    path: str | Path,
    *,
    factory: Factory | None = None,
    trust_factory: bool = False,
) -> nn.Module:
    """The model of an artifact, on the CPU, in evaluation mode, with the stored dtypes.

    An ``onnx`` artifact comes as a module around onnxruntime (`artifact_onnx.OnnxModel`): to be called, not trained.
    path:          an artifact folder, or a run folder: then its newest artifact.
    factory:       makes the bare module in place of the stored model spec; called with the spec's `args`.
    trust_factory: True lets a spec that names a Python function import and call it.
    raises:        CheckpointError for a missing, damaged or unknown artifact, a model that does not fit, or a spec
                   that names a Python function while neither `factory` nor `trust_factory` is given.
    """
    folder = find_artifact(path)
    manifest = read_manifest(folder)
    if manifest["format"] == "onnx":
        from .artifact_onnx import load_onnx

        return load_onnx(folder, manifest)
    module = _bare(folder, manifest, factory, trust_factory)
    _reshape(folder, module, manifest)
    fill(module, read_tensors(folder, manifest))
    if manifest["format"] == "torch_int8":
        from ..compression.integer.torch_layers import in_integers

        in_integers(module, float_layers=manifest.get("float_layers", ()))
    return module.eval()


def load_built(path: str | Path, *, trust_factory: bool = False, device: str = "cpu") -> BuiltModel:
    """As `load`, with all that a run needs to know of the model, in training mode.

    device: "meta" for shapes alone; no tensor is then read.
    """
    from .models import build_model

    folder = find_artifact(path, trainable=True)
    manifest = read_manifest(folder)
    if manifest["format"] == "onnx":
        raise CheckpointError(
            f"artifact {folder}: an onnx file runs and cannot be trained; take one in packed or safetensors"
        )
    _refuse_factory(folder, manifest["model"], trust_factory)
    built = build_model(_without_files(manifest["model"]), seed=0, device=device)
    _reshape(folder, built.module, manifest)
    if device != "meta":
        fill(built.module, read_tensors(folder, manifest))
    return built


def read_artifact(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """artifact.json and the decoded tensors, without building a model. raises: CheckpointError as `load`."""
    folder = find_artifact(path)
    manifest = read_manifest(folder)
    return manifest, read_tensors(folder, manifest)


def find_artifact(path: str | Path, *, trainable: bool = False) -> Path:
    """The artifact folder that `path` means: itself, or the newest under a run folder's artifacts/.

    trainable: of a run folder's artifacts, one that holds a model's tensors where there is such a one.
    """
    given = Path(path)
    if (given / "artifact.json").is_file():
        return given
    found = [file for base in (given, given / "artifacts") for file in base.glob("[!.]*/artifact.json")]
    if not found:
        raise CheckpointError(
            f"artifact {given}: there is no artifact.json in it nor under its artifacts/; "
            "want an artifact folder or a run folder, which `forgepress export` fills"
        )
    if trainable:
        found = [file for file in found if not (file.parent / "model.onnx").is_file()] or found
    return max(found, key=lambda file: (file.stat().st_mtime_ns, file.parent.name)).parent


def folder_bytes(folder: str | Path) -> int:
    """Bytes of all files under `folder`."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _encode_all(tensors: Mapping[str, Tensor], format: Format) -> tuple[dict[str, str], dict[str, Encoded]]:
    """Alias → name for tensors that are one and the same, and the encoded others."""
    aliases: dict[str, str] = {}
    encoded: dict[str, Encoded] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        storage = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and storage in seen:
            aliases[name] = seen[storage]
            continue
        seen[storage] = name
        plain = tensor.detach().cpu()
        encoded[name] = encode(plain, "raw") if format == "safetensors" else _smallest(name, plain, tensors)
    return aliases, encoded


def _smallest(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Encoded:
    """The smallest encoding; the grid of a quantized `weight` is its layer's `weight_scale` and `weight_zero_point`."""
    scale, zero_point = (tensors.get(f"{name}_{part}") for part in ("scale", "zero_point"))
    return choose(positive_zeros(tensor), scale, zero_point)


def _bare(
    folder: Path, manifest: Mapping[str, Any], factory: Factory | None, trust_factory: bool
) -> nn.Module:
    """The module as it was before any phase, with weights that are about to be overwritten."""
    spec = manifest["model"]
    given = spec if isinstance(spec, Mapping) else {}
    if factory is not None:
        made = factory(**given.get("args", {}))
        return made if isinstance(made, nn.Module) else made.module  # or a BuiltModel
    _refuse_factory(folder, given, trust_factory)
    from .models import build_model

    return build_model(_without_files(spec), seed=0).module


def _without_files(spec: Mapping[str, Any] | str) -> Mapping[str, Any] | str:
    """Pretrained weights would be read to be overwritten, and their files may not be here."""
    if isinstance(spec, Mapping) and spec.get("pretrained"):
        return {**spec, "pretrained": False}
    return spec


def _refuse_factory(folder: Path, spec: Mapping[str, Any] | str, trust_factory: bool) -> None:
    name = spec.get("factory") if isinstance(spec, Mapping) else None
    if name is not None and not trust_factory:
        raise CheckpointError(
            f"artifact {folder}: its model is made by the Python function {name!r}, which is imported "
            "and run; pass factory=… to load() with your own function, or trust_factory=True if you trust the file"
        )


def _reshape(folder: Path, module: nn.Module, manifest: Mapping[str, Any]) -> None:
    """What the phases did to the model's shape, done again; then every tensor must have its place."""
    if manifest["plan"]:
        from ..compression import replay

        replay(module, manifest["plan"])
    _check_fit(folder, module, manifest)


def _check_fit(folder: Path, module: nn.Module, manifest: Mapping[str, Any]) -> None:
    """Every tensor must have a place of its shape, every place must be filled. Done before anything is decoded:
    a few bytes of codes can ask for any amount of memory.
    """
    shapes = {name: tuple(entry.get("shape", ())) for name, entry in manifest["tensors"].items()}
    shapes |= {alias: shapes.get(name) for alias, name in manifest["aliases"].items()}
    places = _places(module)
    filled = {id(places[name]) for name in shapes if name in places}
    unknown = sorted(shapes.keys() - places.keys())
    # a tied parameter has several names; filling it under one fills all
    missing = sorted(name for name, place in places.items() if name not in shapes and id(place) not in filled)
    wrong = [
        f"{name} {list(shape or ())} for {list(places[name].shape)}"
        for name, shape in shapes.items()
        if name in places and shape != tuple(places[name].shape)
    ]
    lists = {"unknown": unknown, "missing": missing, "of another shape": wrong}
    said = "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in lists.items() if names)
    if said:
        raise CheckpointError(
            f"artifact {folder}: its tensors do not fit the model ({said}); "
            "it was made for another model or factory, or by another version of Forgepress"
        )


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` into the module's places of these names, ties kept. raises: KeyError for an unknown name."""
    places = _places(module)
    for name, tensor in tensors.items():
        # .data: the dtype may change (an artifact in bf16 gives a model in bf16), ties and requires_grad stay
        places[name].data = tensor.clone().to(places[name].device)


def _places(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict(keep_vars=True)
    return {name: place for name, place in state.items() if isinstance(place, Tensor)}


def _refuse_reserved(values: Mapping[str, Any]) -> None:
    taken = sorted(RESERVED & values.keys())
    if taken:
        raise ValueError(
            f"artifact.json writes {', '.join(taken)} itself; choose other names for extra values"
        )
