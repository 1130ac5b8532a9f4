"""How many rows of 128 tokens does the loader give in a second, against other loaders and against np.take?

200,000 rows of int32 in Arrow files as `datasets` writes them, batches of 256, shuffled, files in the page cache, two
threads or workers at most. The limit is np.take of random rows from one array in memory into one that is used again.
torch's DataLoader and StatefulDataLoader read `datasets` in its torch format. Ways take turns in one process.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from forgepress.benchmarks import _loader_peers as peers
from forgepress.benchmarks import _result
from forgepress.benchmarks._loaders import Way, compared, measure, ours
from forgepress.dataloading import Loader

ROWS, WIDTH, BATCH = 200_000, 128, 256


def main() -> None:
    """Measure and write results/loader_tokens.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(ways(Path(folder), options.rows), seconds=options.seconds, rounds=options.rounds)
    rows = compared(found, "forgepress", "np.take into one buffer")
    question = f"How fast are {options.rows:,} rows of {WIDTH} tokens loaded?"
    _result.write(__file__, question, rows, every_round=found.rounds, left_out=found.left_out)


def ways(folder: Path, count: int) -> dict[str, Way]:
    """All loaders over the same numbers."""
    tokens = np.random.default_rng(0).integers(0, 50_000, (count, WIDTH), dtype=np.int32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), WIDTH).cast(pa.list_(pa.int32()))
    datasets.Dataset(pa.table({"tokens": column})).save_to_disk(
        str(folder / "arrow")
    )  # record batches of 1,000 rows
    data = datasets.load_from_disk(str(folder / "arrow"))
    rows = data.with_format("torch")
    found: dict[str, Way] = {
        "forgepress": ours(lambda: Loader(data, batch=BATCH, prefetch=4, threads=2)),
        "forgepress, one thread": ours(lambda: Loader(data, batch=BATCH, prefetch=4, threads=1)),
        "np.take into one buffer": lambda: _limit(tokens),
        **{f"DataLoader, {n} workers": peers.torch_loader(rows, BATCH, n) for n in (0, 1, 2)},
        **{
            f"StatefulDataLoader, {n} workers": peers.torch_loader(rows, BATCH, n, stateful=True)
            for n in (0, 2)
        },
        "grain, 2 threads": peers.grain(tokens, BATCH, 2),
        "SPDL, 2 threads": peers.spdl(lambda at: tokens[at], count, BATCH, 2),
    }
    shards = peers.Written(folder, "tokens", [row.tobytes() for row in tokens])
    return found | {
        f"{library}, {n} workers": shards.way(library, BATCH, n)
        for library in peers.LIBRARIES
        for n in (0, 2)
    }


def _limit(tokens: np.ndarray) -> Iterator[int]:
    out = np.empty((BATCH, WIDTH), np.int32)
    while True:
        order = np.random.permutation(len(tokens))
        for at in range(0, len(tokens) - BATCH + 1, BATCH):
            np.take(tokens, order[at : at + BATCH], axis=0, out=out, mode="clip")
            yield BATCH


if __name__ == "__main__":
    main()
