"""Does MiniLM keep its accuracy on SST-2 with half of its heads and hidden neurons, and how much faster is it?

Trains examples/minilm_structured.yaml on from the artifact of examples/minilm_sst2.yaml, with each seed, and scores and
times the reloaded artifact. Finished runs are not trained again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write
from forgepress.benchmarks.minilm_sst2 import error, teacher


def main() -> int:
    """Train what is missing, write results/minilm_structured.json."""
    given = arguments()
    dense = error(teacher(given.runs))
    results = [train(given.runs, seed, given.steps) for seed in given.seeds]
    small = [_runs.artifact(summary, "safetensors") for summary in results]
    rows = [
        _runs.row("test error with all heads and neurons", [dense], "%"),
        _runs.row("test error with half of them", [error(summary) for summary in results], "%"),
        _runs.row("change of test error", [error(summary) - dense for summary in results], "points"),
        _runs.row("faster, batch 1, 1 thread, fp32", [_runs.speed_up(entry, 1) for entry in small], "×"),
        _runs.row("faster, batch 32, 1 thread, fp32", [_runs.speed_up(entry, 32) for entry in small], "×"),
    ]
    write(
        __file__, "Does MiniLM keep its accuracy with half of its heads and neurons?", rows, seeds=given.seeds
    )
    return 0


def train(runs: Path, seed: int, steps: int) -> dict[str, Any]:
    """The summary of one run; `steps` of training after the removal, 0: one pass."""
    words = [f"seed={seed}", *(["phases.1.epochs=null", f"phases.1.steps={steps}"] if steps else [])]
    return _runs.train("minilm_structured.yaml", runs, f"minilm_structured-{seed}", words)


def arguments() -> argparse.Namespace:
    """Folder of the runs, seeds, and how long to train."""
    parser = _runs.parser(__doc__)
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps; 0: one pass over the phrases")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
