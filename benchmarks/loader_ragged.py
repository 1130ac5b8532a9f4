"""How many documents of 16 to 255 tokens does the loader pack in a second, against padding them in a DataLoader?

200,000 lists of int32 in Arrow files, shuffled. Packed: rows of 2,048 tokens with document numbers and positions, best
fit, as many rows as hold about 256 documents. Padded: batches of 256, as wide as their longest row. DataLoader reads
`datasets` in its torch format and pads with torch's pad_sequence.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from forgepress.benchmarks import _loader_peers as peers
from forgepress.benchmarks import _result
from forgepress.benchmarks._loaders import Way, compared, measure, ours
from forgepress.dataloading import Buckets, Loader, Packing

ROWS, BATCH, LENGTH = 200_000, 256, 2048


def main() -> None:
    """Measure and write results/loader_ragged.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(ways(Path(folder), options.rows), seconds=options.seconds, rounds=options.rounds)
    rows = compared(found, "forgepress, packed", None)
    _result.write(
        __file__,
        f"How fast are {options.rows:,} documents packed?",
        rows,
        every_round=found.rounds,
        left_out=found.left_out,
    )


def ways(folder: Path, count: int) -> dict[str, Way]:
    """Documents a second, whatever a batch is made of."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(16, 256, count)
    values = pa.array(generator.integers(1, 50_000, int(lengths.sum()), dtype=np.int32))
    offsets = pa.array(np.cumsum([0, *lengths]).astype(np.int32))
    column = pa.ListArray.from_arrays(offsets, values)
    datasets.Dataset(pa.table({"tokens": column})).save_to_disk(str(folder / "arrow"))
    data = datasets.load_from_disk(str(folder / "arrow"))
    rows = data.with_format("torch")
    packed = round(BATCH * float(lengths.mean()) / LENGTH)
    return {
        "forgepress, packed": lambda: _documents(data, packed, "long", count),
        "forgepress, packed and cut": lambda: _documents(data, packed, "any", count),
        "forgepress, padded": ours(lambda: Loader(data, batch=BATCH, prefetch=4, threads=2)),
        "forgepress, padded in buckets": ours(
            lambda: Loader(data, batch=BATCH, buckets=Buckets(), prefetch=4)
        ),
        **{
            f"DataLoader, {n} workers, padded": peers.torch_loader(rows, BATCH, n, collate=_pad)
            for n in (0, 1, 2)
        },
        "StatefulDataLoader, 2 workers, padded": peers.torch_loader(
            rows, BATCH, 2, stateful=True, collate=_pad
        ),
        "grain, 2 threads, packed": peers.grain_packed(_Documents(data), LENGTH, round(packed), 2),
    }


def _documents(data: Any, batch: int, split: Any, count: int) -> Iterator[int]:
    pack = Packing(length=LENGTH, split=split)
    with Loader(data, batch=batch, pack=pack, prefetch=8, threads=2) as loader:
        each = count / (len(loader) * batch)  # documents in a row, on the average of an epoch
        yield 0  # the clock begins here
        given = 0.0
        for made in loader.stream():
            given += made.global_rows * each
            yield int(given)
            given -= int(given)


class _Documents:
    """Lists of tokens by number."""

    def __init__(self, data: Any) -> None:
        self._data = data.with_format("numpy")

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {"tokens": self._data[int(row)]["tokens"]}


def _pad(rows: list[Any]) -> Any:
    return torch.nn.utils.rnn.pad_sequence([row["tokens"] for row in rows], batch_first=True)


if __name__ == "__main__":
    main()
