"""The index of a checkpoint is a pickle by torch's choice; reading it must not run what it names."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from forgepress.errors import CheckpointError
from forgepress.trainer.checkpoint_reader import SafeReader


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore")
def test_reads_what_torch_writes(tmp_path: Path) -> None:
    written = {
        "weight": torch.arange(6.0).reshape(2, 3),
        "mask": torch.tensor([True, False]),
        "half": torch.ones(2).half(),
    }
    dcp.save(dict(written), checkpoint_id=tmp_path, no_dist=True)
    read = {key: torch.zeros_like(value) for key, value in written.items()}
    dcp.load(read, storage_reader=SafeReader(tmp_path), no_dist=True)
    assert all(torch.equal(read[key], written[key]) for key in written)


def test_runs_nothing_that_the_index_names(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harmful(tmp_path / "made")))
    with pytest.raises(CheckpointError, match="mkdir"):
        SafeReader(tmp_path).read_metadata()
    assert not (tmp_path / "made").exists()


def test_a_cut_index_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x04\x95")
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        SafeReader(tmp_path).read_metadata()
