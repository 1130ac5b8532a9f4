"""What the two benchmarks of network surgery share: three seeds, the reloaded artifact's error, the paper beside it."""

from pathlib import Path
from typing import Any

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write


def main(script: str, question: str, config: str, paper: tuple[float, float]) -> int:
    """Train what is missing, write results/<script>.json.

    config: the YAML file in examples/.   paper: times fewer weights, test error in percent.
    """
    parser = _runs.parser(question)
    parser.add_argument("words", nargs="*", help="more overrides, such as precision=fp32")
    given = parser.parse_args()
    name = Path(config).stem
    results = [
        _runs.train(config, given.runs, f"{name}-{seed}", [f"seed={seed}", *given.words])
        for seed in given.seeds
    ]
    write(script, question, [*_rows(results), *_paper(paper)], seeds=given.seeds)
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
