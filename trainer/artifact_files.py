"""The two files of an artifact: tensors in safetensors, everything else in JSON."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..compression.encodings import Encoded, decode, dtype_name, dtype_named
from ..errors import CheckpointError
from .jsonable import write_json

TENSORS = "model.safetensors"
MANIFEST = "artifact.json"
VERSION = 1
_NOT_SETTINGS = ("encoding", "shape", "dtype")
RESERVED = {"version", "format", "model", "plan", "tensors", "aliases", "sha256", "file"}
_AGAIN = "export it again from the run's checkpoint, or copy the folder again"


@contextmanager
def in_one_move(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `target` when all went well. raises: CheckpointError."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _replace_folder(partial, target)
    except OSError as error:
        raise CheckpointError(
            f"artifact {target}: cannot be written ({error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(partial: Path, target: Path) -> None:
    """Moves `partial` to `target`. A folder cannot replace another in one call, so the old one steps aside first."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    shutil.rmtree(old, ignore_errors=True)


def describe(name: str, encoded: Encoded) -> dict[str, Any]:
    """What artifact.json says of the tensor `name`."""
    entry = {"encoding": encoded.encoding, "shape": list(encoded.shape), "dtype": dtype_name(encoded.dtype)}
    return {**entry, **encoded.settings, **{part: f"{name}_{part}" for part in encoded.shared}}


def stream_name(tensor: str, stream: str, encoding: str) -> str:
    """A stream's name in the file: raw tensors keep their own, so that every safetensors reader finds them."""
    return tensor if encoding == "raw" else f"{tensor}::{stream}"


def write_tensors(path: Path, encoded: Mapping[str, Encoded]) -> None:
    """Writes all streams into one safetensors file. cost: the streams, once in memory."""
    from safetensors.torch import save_file

    streams: dict[str, Tensor] = {}
    for name, entry in encoded.items():
        for stream, tensor in entry.streams.items():
            # safetensors refuses tensors that share memory, also without overlap: slices get memory of their own
            own = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
            streams[stream_name(name, stream, entry.encoding)] = own
    save_file(streams, str(path), metadata={"forgepress": str(VERSION)})


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes artifact.json, small: it counts as bytes of the artifact. `file` in it is TENSORS unless given."""
    write_json(folder / MANIFEST, {"version": VERSION, "file": TENSORS, **manifest}, indent=None)


def read_manifest(folder: Path) -> dict[str, Any]:
    """artifact.json, checked. raises: CheckpointError where it is damaged or of a version that is not known here."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"artifact {folder}: {MANIFEST} cannot be read ({error}); {_AGAIN}") from error
    if version != VERSION:
        raise CheckpointError(
            f"artifact {folder}: it has format version {version!r}, this Forgepress reads {VERSION}; "
            "install the version that wrote it, or export it again with this one"
        )
    kinds = {"model": (str, dict), "plan": list, "tensors": dict, "aliases": dict, "sha256": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        raise CheckpointError(
            f"artifact {folder}: {MANIFEST} lacks or misstates {', '.join(wrong)}; {_AGAIN}"
        )
    return manifest


def read_tensors(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors by name, decoded, tied ones under each of their names.

    raises: CheckpointError where the file is damaged or is not the one that artifact.json speaks of.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / TENSORS
    try:
        found = digest(path)
        if found != manifest["sha256"]:
            raise CheckpointError(
                f"artifact {folder}: {TENSORS} is damaged or was exchanged (sha256 {found[:12]}…, "
                f"{MANIFEST} says {manifest['sha256'][:12]}…); {_AGAIN}"
            )
        with safe_open(str(path), framework="pt") as file:
            streams = set(file.keys())
            entries, tensors = manifest["tensors"], {}
            for name in sorted(entries, key=lambda name: _is_grid(entries[name])):  # last: grids need scales
                tensors[name] = _decoded(file, streams, name, entries[name], tensors, manifest["aliases"])
        return {**tensors, **{alias: tensors[name] for alias, name in manifest["aliases"].items()}}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise CheckpointError(f"artifact {folder}: {TENSORS} cannot be read ({error}); {_AGAIN}") from error


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_grid(entry: Mapping[str, Any]) -> bool:
    return entry["encoding"] == "grid"


def _decoded(
    file: Any,
    streams: set[str],
    name: str,
    entry: Mapping[str, Any],
    known: Mapping[str, Tensor],
    aliases: Mapping[str, str],
) -> Tensor:
    """One tensor; `known` are those decoded before it, among them the scales of its grid."""
    shape = tuple(int(length) for length in entry["shape"])
    encoding = entry["encoding"]
    own = {
        stream: file.get_tensor(full)
        for stream in ("values", "mask", "gaps", "levels")
        if (full := stream_name(name, stream, encoding)) in streams
        and (encoding != "raw" or stream == "values")
    }
    names = {part: entry[part] for part in ("scale", "zero_point") if part in entry}
    shared = {part: known[aliases.get(other, other)] for part, other in names.items()}
    settings = {key: value for key, value in entry.items() if key not in (*_NOT_SETTINGS, *shared)}
    encoded = Encoded(
        encoding=encoding,
        shape=shape,
        dtype=dtype_named(entry["dtype"]),
        streams=own,
        settings=settings,
        shared=shared,
    )
    try:
        return decode(encoded)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
