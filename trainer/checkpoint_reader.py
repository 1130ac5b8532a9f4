"""Reads a sharded checkpoint without running anything that its files name.

torch keeps a checkpoint's index as a pickle. A pickle may call any function when it is read; this reader lets it
make the index's own classes and nothing else. (The tensors are read by torch with ``weights_only``.)
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from ..errors import CheckpointError

_INDEX = "torch.distributed.checkpoint."
_KNOWN = {
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    (_INDEX + "filesystem", "_StorageInfo"),
    (_INDEX + "metadata", "BytesStorageMetadata"),
    (_INDEX + "metadata", "ChunkStorageMetadata"),
    (_INDEX + "metadata", "Metadata"),
    (_INDEX + "metadata", "MetadataIndex"),
    (_INDEX + "metadata", "StorageMeta"),
    (_INDEX + "metadata", "TensorProperties"),
    (_INDEX + "metadata", "TensorStorageMetadata"),
    (_INDEX + "metadata", "_MEM_FORMAT_ENCODING"),
}


class SafeReader(FileSystemReader):
    """torch's reader of checkpoint folders, with an index that can only be an index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index. raises: CheckpointError where it names anything but the classes of an index."""
        file = Path(self.path) / ".metadata"
        try:
            with file.open("rb") as stream:
                metadata = _IndexOnly(stream).load()
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError) as error:
            raise CheckpointError(f"{file} cannot be read as the index of a checkpoint: {error}") from error
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in _KNOWN or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in an index")
