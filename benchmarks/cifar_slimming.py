"""Does slimming take 88 % of a VGG-like network's parameters at no more than half a point of accuracy?

Trains examples/cifar_slimming.yaml and the same network without the technique, as many epochs, with each seed, and
counts, scores and times the reloaded artifacts. Runs that are finished (in --runs) are not trained again.
The paper's row (Liu et al. 2017, arXiv:1708.06519, table 1, VGGNet on CIFAR-10): 88.5 % of parameters and 51.0 % of
FLOPs gone, test error 6.34 % → 6.20 %; there a larger network learned 160 epochs on the original pictures.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from forgepress import load
from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write
from forgepress.compression.structure import macs


def main() -> int:
    """Train what is missing, write results/cifar_slimming.json."""
    given = arguments()
    epochs: tuple[int, int] = tuple(given.epochs)
    dense = [whole_network(given.runs, seed, sum(epochs)) for seed in given.seeds]
    slim = [train(given.runs, seed, epochs, given.words) for seed in given.seeds]
    small = [_runs.artifact(summary, "safetensors") for summary in slim]
    errors = {name: [_runs.error_of(_runs.artifact(r, "safetensors")["metrics"]) for r in results]
              for name, results in (("dense", dense), ("slim", slim))}  # fmt: skip
    work = [multiply_adds(given.runs / summary["name"]) for summary in slim]
    whole = [multiply_adds(given.runs / summary["name"]) for summary in dense]
    gone = [1 - r["params"]["total"] / d["params"]["total"] for r, d in zip(slim, dense, strict=True)]
    fewer = [before / after for before, after in zip(whole, work, strict=True)]
    faster = [_runs.speed_up(entry, 32) for entry in small]
    rows = [
        _runs.row("test error of the dense network", errors["dense"], "%"),
        _runs.row("test error of the reloaded slimmed network", errors["slim"], "%"),
        _runs.row(
            "change of test error",
            [s - d for d, s in zip(errors["dense"], errors["slim"], strict=True)],
            "points",
        ),
        _runs.row("parameters gone", [100 * share for share in gone], "%"),
        _runs.row("multiply-adds gone", [100 * (1 - 1 / times) for times in fewer], "%"),
        _runs.row("faster, batch 32, 1 thread, fp32", faster, "×"),
        _runs.row(
            "measured gain as a share of the gain in multiply-adds",
            [f / w for f, w in zip(faster, fewer, strict=True)],
            "×",
        ),
    ]
    write(
        __file__,
        "Does slimming take 88 % of a VGG-like network's parameters at half a point?",
        rows,
        seeds=given.seeds,
    )
    return 0


def whole_network(runs: Path, seed: int, epochs: int) -> dict[str, Any]:
    """The summary of the network that nothing is taken from."""
    settings = [f"seed={seed}", f"phases=[{{name: dense, epochs: {epochs}}}]"]
    name = f"cifar_whole-{seed}"
    return {**_runs.train("cifar_slimming.yaml", runs, name, settings), "name": name}


def train(runs: Path, seed: int, epochs: tuple[int, int], words: list[str]) -> dict[str, Any]:
    """The summary of one slimming; `epochs` before and after the removal."""
    lengths = [f"phases.{phase}.epochs={number}" for phase, number in enumerate(epochs)]
    name = f"cifar_slimming-{seed}"
    settings = [f"seed={seed}", *lengths, *words]
    return {**_runs.train("cifar_slimming.yaml", runs, name, settings), "name": name}


def multiply_adds(run: Path) -> int:
    """Of one picture through the reloaded artifact."""
    return macs(load(run), torch.zeros(1, 3, 32, 32))


def arguments() -> argparse.Namespace:
    """Folder of the runs, seeds, and how long to train."""
    parser = _runs.parser(__doc__)
    parser.add_argument("--epochs", type=int, nargs=2, default=[6, 6], help="before and after the removal")
    parser.add_argument("words", nargs="*", help="more overrides for the slimming, key=value")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
