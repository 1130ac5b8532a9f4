"""Does network surgery at 95 % keep LeNet-300-100's accuracy on MNIST, on one process and on shard=2?

Trains examples/mnist_lenet300.yaml with three seeds on both meshes and reads each run's summary.json. Runs that are
finished already (in --runs) are not trained again: `forgepress train` goes on where a run of that name stopped.
MNIST comes from FORGEPRESS_DATA (default: ../shared/data), as the example says.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from forgepress.benchmarks._result import write

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
MESHES = {"one process": (1, []), "shard=2": (2, ["parallel.shard=2"])}


def main() -> int:
    """Train what is missing, write results/mnist_surgery.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    runs: Path = parser.parse_args().runs.resolve()
    rows = []
    for mesh, (ranks, overrides) in MESHES.items():
        results = [train(runs, mesh, ranks, overrides, seed) for seed in SEEDS]
        rows += table_rows(mesh, results)
    write(
        __file__, "Does surgery at 95 % keep the accuracy of LeNet-300-100 on MNIST?", rows, seeds=list(SEEDS)
    )
    return 0


def train(runs: Path, mesh: str, ranks: int, overrides: list[str], seed: int) -> dict[str, Any]:
    """The summary of one run."""
    name = f"mnist-{'one' if ranks == 1 else 'shard'}-{seed}"
    words = [f"name={name}", f"seed={seed}", f"checkpoint.folder={runs}", *overrides]
    command = [sys.executable, "-m", "forgepress.launch", "train", "examples/mnist_lenet300.yaml", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    subprocess.run([*command, "--ranks", str(ranks)], cwd=ROOT, env=environment, check=True)
    return json.loads((runs / name / "summary.json").read_text())


def table_rows(mesh: str, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Test error before and after, their difference, and how much smaller the packed file is."""
    dense = [100 * (1 - r["phases"][0]["metrics"]["accuracy"]) for r in results]
    packed = [next(a for a in r["artifacts"] if a["format"] == "packed") for r in results]
    small = [100 * (1 - a["metrics"]["accuracy"]) for a in packed]
    change = [after - before for before, after in zip(dense, small, strict=True)]
    return [
        row(f"{mesh}: test error of the dense phase", dense, "%"),
        row(f"{mesh}: test error of the reloaded packed artifact, 95 % zeros", small, "%"),
        row(f"{mesh}: change of test error", change, "points"),
        row(f"{mesh}: packed file smaller than dense weights by", [a["ratio"] for a in packed], "×"),
    ]


def row(case: str, values: list[float], unit: str) -> dict[str, Any]:
    """Mean over seeds with the range."""
    spread = {"low": round(min(values), 3), "high": round(max(values), 3), "repeats": len(values)}
    return {"case": case, "value": round(statistics.mean(values), 3), "unit": unit, **spread}


if __name__ == "__main__":
    sys.exit(main())
