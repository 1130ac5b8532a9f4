"""How well does MiniLM know praise from blame (SST-2) after one pass over the training phrases?

Trains examples/minilm_sst2.yaml with each seed. Seed 0's run is called minilm_sst2: other benchmarks start from its
artifact. Runs that are finished (in --runs) are not trained again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write


def main() -> int:
    """Train what is missing, write results/minilm_sst2.json."""
    given = arguments()
    results = [teacher(given.runs, seed, given.steps) for seed in given.seeds]
    rows = [_runs.row("test error of the reloaded artifact", [error(result) for result in results], "%")]
    write(__file__, "How well does MiniLM learn SST-2 in one pass?", rows, seeds=given.seeds)
    return 0


def teacher(runs: Path, seed: int = 0, steps: int = 0) -> dict[str, Any]:
    """The summary of the fine-tuned MiniLM; `steps` 0: one pass."""
    words = [f"seed={seed}", *([f"phases=[{{name: tune, steps: {steps}}}]"] if steps else [])]
    return _runs.train("minilm_sst2.yaml", runs, "minilm_sst2" if seed == 0 else f"minilm_sst2-{seed}", words)


def error(summary: dict[str, Any]) -> float:
    """Test error of the reloaded artifact in percent."""
    return _runs.error_of(summary["artifacts"][0]["metrics"])


def arguments() -> argparse.Namespace:
    """Folder of the runs, seeds, and how long to train."""
    parser = _runs.parser(__doc__)
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps; 0: one pass over the phrases")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
