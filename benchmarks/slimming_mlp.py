"""How many parameters of the MLP 784-500-300-10 can network slimming remove on MNIST, and what does it cost?

Trains examples/mnist_slimming.yaml with three seeds and reads each run's summary.json. Beside it stands table 3 of
Liu et al. 2017, arXiv:1708.06519: 1.43 % test error dense, 1.49 % with 84.4 % of the parameters gone. Finished runs
(in --runs) are not repeated. MNIST comes from FORGEPRESS_DATA (default: ../shared/data), as the example says.
"""

import json
import sys
from typing import Any

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write

PASSES = {
    "slim": "tune",
    "slim_again": "tune_again",
}  # a phase that removes → the phase that tunes what is left
PAPER = {"dense": 1.43, "pruned": 1.49, "parameters gone": 84.4}


def main() -> int:
    """Train what is missing, write results/slimming_mlp.json."""
    parser = _runs.parser(__doc__)
    given = parser.parse_args()
    runs, seeds = given.runs, given.seeds
    summaries = [_runs.train("mnist_slimming.yaml", runs, f"slimming-{s}", [f"seed={s}"]) for s in seeds]
    plans = [json.loads((runs / f"slimming-{s}" / "plan.json").read_text()) for s in seeds]
    rows = [_runs.row("test error of the dense network (paper: 1.43 %)", _errors(summaries, "dense"), "%")]
    for slim, tune in PASSES.items():
        rows += _pass(summaries, plans, slim, tune)
    reloaded = [_runs.error_of(s["artifacts"][0]["metrics"]) for s in summaries]
    rows.append(_runs.row("test error of the reloaded file of the second pass", reloaded, "%"))
    question = "How many parameters of an MLP on MNIST can slimming remove, and what does it cost?"
    write(__file__, question, rows, seeds=seeds, paper=PAPER)
    return 0


def _pass(summaries: list[Any], plans: list[Any], slim: str, tune: str) -> list[dict[str, Any]]:
    """What one pass has removed of the dense network, and the test error after tuning what is left."""
    gone = [100 * (1 - _left(plan, slim) / _first(plan)) for plan in plans]
    widths = " and ".join(str(size) for _, size in sorted(_groups(plans[0], slim).values(), reverse=True))
    errors, dense = _errors(summaries, tune), _errors(summaries, "dense")
    change = [after - before for before, after in zip(dense, errors, strict=True)]
    paper = " (paper: 84.4 %)" if slim == "slim" else ""
    return [
        _runs.row(
            f"parameters gone after {slim}{paper}; {widths} neurons stay with the first seed", gone, "%"
        ),
        _runs.row(f"test error after {tune}{' (paper: 1.49 %)' if paper else ''}", errors, "%"),
        _runs.row(f"change of test error{' (paper: +0.06)' if paper else ''}", change, "points"),
    ]


def _errors(summaries: list[Any], phase: str) -> list[float]:
    return [
        _runs.error_of(next(p["metrics"] for p in summary["phases"] if p["phase"] == phase))
        for summary in summaries
    ]


def _records(plan: list[Any]) -> dict[str, Any]:
    return {line["phase"]: line["record"] for line in plan if "removed" in line["record"]}


def _first(plan: list[Any]) -> int:
    return _records(plan)["slim"]["removed"]["parameters"][0]


def _left(plan: list[Any], phase: str) -> int:
    return _records(plan)[phase]["removed"]["parameters"][1]


def _groups(plan: list[Any], phase: str) -> dict[str, list[int]]:
    return _records(plan)[phase]["groups"]


if __name__ == "__main__":
    sys.exit(main())
