"""How small and fast is MiniLM on SST-2 after distillation to three layers, removal of half of their heads and neurons,
training on the grid and export to ONNX, all in one run?

Trains examples/minilm_sst2_end_to_end.yaml with each seed, from the teacher that examples/minilm_sst2.yaml trains, and
compares the ONNX artifact, reloaded into onnxruntime, with the teacher in torch, float32, on one thread. With --shard
seed 0 is trained once more on two ranks with parallel.shard=2. Finished runs are not trained again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from forgepress import load
from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write
from forgepress.benchmarks.minilm_sst2 import error, teacher
from forgepress.compression import latency

TOKENS = 128


def main() -> int:
    """Train what is missing, write results/minilm_end_to_end.json."""
    given = arguments()
    six = teacher(given.runs)
    dense = _runs.artifact(six, "safetensors")
    results = [train(given.runs, seed, given.words) for seed in given.seeds]
    small = [_runs.artifact(summary, "onnx") for summary in results]
    errors = [_runs.error_of(entry["metrics"]) for entry in small]
    faster = [speed_ups(given.runs, seed) for seed in given.seeds]
    rows = [
        _runs.row("test error of the teacher", [error(six)], "%"),
        _runs.row("test error of the ONNX artifact", errors, "%"),
        _runs.row("change of test error", [found - error(six) for found in errors], "points"),
        _runs.row("ONNX artifact smaller than the teacher's by", [dense["bytes"] / e["bytes"] for e in small], "×"),
        *(
            _runs.row(f"faster than the teacher in torch, batch {batch} × {TOKENS} tokens, 1 thread",
                      [found[batch] for found in faster], "×")
            for batch in faster[0]
        ),
    ]  # fmt: skip
    if given.shard:
        entry = _runs.artifact(train(given.runs, 0, given.words, shard=2), "onnx")
        rows.append(
            _runs.row("shard=2: test error of the ONNX artifact", [_runs.error_of(entry["metrics"])], "%")
        )
    write(__file__, "How small and fast is MiniLM after everything in one run?", rows, seeds=given.seeds)
    return 0


def train(runs: Path, seed: int, words: list[str], shard: int = 1) -> dict[str, Any]:
    """The summary of one run."""
    name = f"minilm_end_to_end-{seed}" if shard == 1 else f"minilm_end_to_end-{seed}-shard"
    settings = [f"seed={seed}", f"parallel.shard={shard}", *words]
    return _runs.train("minilm_sst2_end_to_end.yaml", runs, name, settings, ranks=shard)


def speed_ups(runs: Path, seed: int) -> dict[int, float]:
    """Rows of a batch → how many times faster, by the medians of forward passes that take turns."""
    models = {
        "dense": load(runs / "minilm_sst2/artifacts/safetensors"),
        "compressed": load(runs / f"minilm_end_to_end-{seed}/artifacts/onnx"),
    }
    cases = latency.measure(models, some_tokens, batches=(1, 8), threads=(1,), seconds=10.0)
    return {case.batch: case.speed_up() for case in cases}


def some_tokens(rows: int) -> tuple[torch.Tensor, ...]:
    """Whole words of the vocabulary at random, none is padding."""
    return (torch.randint(2000, 20000, (rows, TOKENS), generator=torch.Generator().manual_seed(0)),)


def arguments() -> argparse.Namespace:
    """Folder of the runs, seeds, and overrides."""
    parser = _runs.parser(__doc__)
    parser.add_argument("--shard", action="store_true", help="also on two ranks")
    parser.add_argument("words", nargs="*", help="more overrides, key=value")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
