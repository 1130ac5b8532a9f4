"""What the two benchmarks of network surgery share: three seeds, the reloaded artifact's error, the paper beside it."""

import argparse
from pathlib import Path
from typing import Any

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write

SEEDS = (0, 1, 2)


def main(script: str, question: str, config: str, paper: tuple[float, float]) -> int:
    """Train what is missing, write results/<script>.json.

    config: the YAML file in examples/.   paper: times fewer weights, test error in percent.
    """
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("words", nargs="*", help="more overrides, such as precision=fp32")
    given = parser.parse_args()
    runs: Path = given.runs.resolve()
    name = Path(config).stem
    results = [_runs.train(config, runs, f"{name}-{seed}", [f"seed={seed}", *given.words]) for seed in SEEDS]
    write(script, question, [*_rows(results), *_paper(paper)], seeds=list(SEEDS))
    return 0


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    packed = [_runs.artifact(result, "packed") for result in results]
    dense = [_runs.error_of(result["phases"][0]["metrics"]) for result in results]
    fewer = [result["params"]["total"] / result["params"]["nonzero"] for result in results]
    return [
        _runs.row("times fewer weights, biases counted", fewer, "×", 1),
        _runs.row(
            "test error of the reloaded packed artifact", [_runs.error_of(a["metrics"]) for a in packed], "%"
        ),
        _runs.row("test error of the dense phase", dense, "%"),
        _runs.row("packed file smaller than dense weights by", [a["ratio"] for a in packed], "×", 1),
    ]


def _paper(paper: tuple[float, float]) -> list[dict[str, Any]]:
    fewer, error = paper
    return [
        {"case": "the paper (Guo et al. 2016): times fewer weights", "value": fewer, "unit": "×"},
        {"case": "the paper: test error", "value": error, "unit": "%"},
    ]
