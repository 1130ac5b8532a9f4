"""Do three layers of MiniLM learn SST-2 better from the fine-tuned six than alone?

Trains examples/minilm_distillation.yaml, with its teacher and without, with each seed. The teacher is the artifact of
examples/minilm_sst2.yaml. Finished runs are not trained again.
"""

import argparse
import sys
from pathlib import Path

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write
from forgepress.benchmarks.minilm_sst2 import error, teacher


def main() -> int:
    """Train what is missing, write results/minilm_distillation.json."""
    given = arguments()
    six = teacher(given.runs)
    alone = [student(given.runs, seed, given.steps, taught=False) for seed in given.seeds]
    taught = [student(given.runs, seed, given.steps, taught=True) for seed in given.seeds]
    rows = [
        _runs.row("test error of the teacher", [error(six)], "%"),
        _runs.row("test error of three layers alone", alone, "%"),
        _runs.row("test error of three layers with the teacher", taught, "%"),
        _runs.row("better by", [a - t for a, t in zip(alone, taught, strict=True)], "points"),
    ]
    write(__file__, "Do three layers of MiniLM learn SST-2 better from a teacher?", rows, seeds=given.seeds)
    return 0


def student(runs: Path, seed: int, steps: int, *, taught: bool) -> float:
    """Test error of the reloaded student in percent."""
    words = [f"seed={seed}", *([] if taught else ["phases.0.techniques=[]"])]
    words += ["phases.0.epochs=null", f"phases.0.steps={steps}"] if steps else []
    summary = _runs.train(
        "minilm_distillation.yaml", runs, f"minilm_three-{'taught' if taught else 'alone'}-{seed}", words
    )
    return error(summary)


def arguments() -> argparse.Namespace:
    """Folder of the runs, seeds, and how long to train."""
    parser = _runs.parser(__doc__)
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps; 0: one pass over the phrases")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
