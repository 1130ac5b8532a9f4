"""Small sources whose rows can be told apart, and the folder with real data."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from forgepress.dataloading import ArraySource


@pytest.fixture
def numbered():
    """Make a source of `rows` rows: number [] int64 is the row's own, point [2, 3] float32 depends on it."""

    def make(rows: int) -> ArraySource:
        number = torch.arange(rows)
        return ArraySource({"number": number, "point": (number[:, None, None] + torch.zeros(2, 3)).sin()})

    return make


class Slow:
    """A source that is not resident, so that a thread gathers from it; it fails at row `bad`."""

    def __init__(self, source: ArraySource, bad: int | None = None) -> None:
        self._source, self._bad = source, bad
        self.columns, self.fingerprint = source.columns, source.fingerprint
        self.asked: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        self.asked.append(rows)
        if self._bad is not None and (rows == self._bad).any():
            raise ValueError(f"row {self._bad} is bad")
        return self._source.gather(rows)


@pytest.fixture
def slow():
    """The class of sources that are read by a thread."""
    return Slow


@pytest.fixture
def real_data():
    """Path of one real data set; skips the test where it is not there."""
    root = Path(os.environ.get("FORGEPRESS_DATA", Path(__file__).parents[3] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no {name} in FORGEPRESS_DATA ({root})")
        return root / name

    return find


@pytest.fixture
def table_cache(tmp_path, monkeypatch):
    """Hugging Face datasets keeps its copies in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path
