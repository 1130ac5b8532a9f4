"""How much of a training step waits for data, and how soon does a resumed run have its first batch?

The step is 6 ms of matrix products in one thread, which drop Python's lock. Data: 200,000 rows of 128 tokens and 20,000
JPEG pictures of 64 pixels, as in the other loader benchmarks. Resume: a source of 100 million rows, each its number
alone (so that only the loader's own work is measured), continued at positions all over an epoch.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from forgepress.benchmarks import _result, loader_images
from forgepress.benchmarks._turns import spread
from forgepress.dataloading import ColumnInfo, Loader

STEP = 0.006
ROWS = 100_000_000


class Numbers:
    """A row is its number."""

    fingerprint, concurrent = "numbers", True
    columns = {"number": ColumnInfo(torch.int64, ())}  # noqa: RUF012

    def __len__(self) -> int:
        return ROWS

    def gather(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """The numbers themselves."""
        return {"number": torch.from_numpy(rows.copy())}


def main() -> None:
    """Measure and write results/loader_wait.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    waits: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pictures, _, _ = loader_images.pictures(Path(folder) / "pictures", loader_images.ROWS)
        tokens = np.random.default_rng(0).integers(0, 50_000, (200_000, 128), dtype=np.int32)
        makes = {
            "tokens, batches of 256": lambda: Loader({"tokens": tokens}, batch=256, mode="thread"),
            "JPEG pictures, batches of 64": lambda: Loader(pictures, batch=64),
        }
        for _ in range(options.rounds):
            for name, make in makes.items():
                waits.setdefault(name, []).append(_wait(make, options.steps))
    rows = [
        {
            "case": f"{name}: wait behind a 6 ms step",
            "value": statistics.median(found),
            "unit": "%",
            **spread(found),
        }
        for name, found in waits.items()
    ]
    firsts = [_resumed(round(share * ROWS)) for share in (0.0, 0.1, 0.37, 0.5, 0.9, 0.999)]
    rows.append(
        {
            "case": f"first batch after a resume among {ROWS:,} rows",
            "value": statistics.median(firsts),
            "unit": "ms",
            **spread(firsts),
        }
    )
    question = "How much of a step waits for data, and how soon is a resumed run's first batch there?"
    _result.write(__file__, question, rows, wait_percent=waits, first_batch_ms=firsts)


def _wait(make: Any, steps: int) -> float:
    """Percent of the time of `steps` steps, after ten that do not count."""
    weight = torch.randn(256, 256)
    with make() as loader:
        batches = loader.stream()
        for number in range(steps + 10):
            if number == 10:
                begin, before = time.perf_counter(), loader.wait_seconds
            next(batches)
            until = time.perf_counter() + STEP
            while time.perf_counter() < until:
                weight @ weight
        return 100 * (loader.wait_seconds - before) / (time.perf_counter() - begin)


def _resumed(consumed: int) -> float:
    """Milliseconds from a fresh Loader to the first batch."""
    state = {**Loader(Numbers(), batch=256).state_dict(), "epoch": 3, "consumed": consumed - consumed % 256}
    begin = time.perf_counter()
    with Loader(Numbers(), batch=256) as loader:
        loader.load_state_dict(state)
        next(loader.stream())
        return 1e3 * (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
