"""Does a small network learn CIFAR-10 better from a teacher than alone?

Trains examples/cifar_distillation.yaml, with its teacher and without, with each seed. The teacher is the artifact of
examples/cifar_vgg.yaml. Finished runs are not trained again.
"""

import argparse
import sys
from pathlib import Path

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write


def main() -> int:
    """Train what is missing, write results/cifar_distillation.json."""
    given = arguments()
    teacher = _runs.cifar_network(given.runs, 0, given.teacher_epochs)
    alone = [student(given.runs, seed, given.epochs, taught=False) for seed in given.seeds]
    taught = [student(given.runs, seed, given.epochs, taught=True) for seed in given.seeds]
    rows = [
        _runs.row("test error of the teacher", [_runs.error_of(teacher["artifacts"][0]["metrics"])], "%"),
        _runs.row("test error of the student alone", alone, "%"),
        _runs.row("test error of the student with the teacher", taught, "%"),
        _runs.row("better by", [a - t for a, t in zip(alone, taught, strict=True)], "points"),
    ]
    write(__file__, "Does a small network learn CIFAR-10 better from a teacher?", rows, seeds=given.seeds)
    return 0


def student(runs: Path, seed: int, epochs: int, *, taught: bool) -> float:
    """Test error of the reloaded student in percent."""
    words = [f"seed={seed}", f"phases.0.epochs={epochs}", *([] if taught else ["phases.0.techniques=[]"])]
    name = f"cifar_student-{'taught' if taught else 'alone'}-{seed}"
    summary = _runs.train("cifar_distillation.yaml", runs, name, words)
    return _runs.error_of(summary["artifacts"][0]["metrics"])


def arguments() -> argparse.Namespace:
    """Folder of the runs, seeds, and how long to train."""
    parser = _runs.parser(__doc__)
    parser.add_argument("--epochs", type=int, default=16, help="of the student")
    parser.add_argument("--teacher-epochs", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
