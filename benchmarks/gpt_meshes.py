"""Does the character GPT that is pruned while it trains give one loss curve on every mesh?

Trains examples/gpt_shakespeare.yaml for a short while (its ramp and its schedule shortened alike) on one process and
under pipeline=2, tensor=2 and shard=2, and compares the training losses of all steps in metrics.jsonl.
The text comes from FORGEPRESS_DATA (default: ../shared/data), as the example says.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from forgepress.benchmarks import _result

ROOT = Path(__file__).resolve().parent.parent
MESHES = {
    "one process": [],
    "pipeline=2": ["parallel.pipeline=2", "parallel.microbatches=2"],
    "tensor=2": ["parallel.tensor=2"],
    "shard=2": ["parallel.shard=2"],
}


def main() -> int:
    """Train on each mesh, write results/gpt_meshes.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    steps: int = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        curves = {mesh: train(Path(folder), mesh, words, steps) for mesh, words in MESHES.items()}
    alone = curves.pop("one process")
    rows = [
        {"case": f"one process: loss after {steps} steps", "value": round(alone[max(alone)], 4), "unit": ""}
    ]
    for mesh, curve in curves.items():
        assert curve.keys() == alone.keys(), f"{mesh} logged other steps"
        worst = max(abs(curve[step] - alone[step]) / alone[step] for step in alone)
        rows.append({"case": f"{mesh}: largest relative difference of the loss", "value": worst, "unit": ""})
    _result.write(__file__, "Is the pruned GPT's loss curve the same on every mesh?", rows)
    return 0


def train(folder: Path, mesh: str, words: list[str], steps: int) -> dict[int, float]:
    """Step → training loss of one run."""
    name = mesh.replace(" ", "-").replace("=", "-")
    settings = [f"name={name}", f"checkpoint.folder={folder}", f"phases.0.steps={steps}", "tracking.every=1"]
    command = [
        sys.executable,
        "-m",
        "forgepress.launch",
        "train",
        "examples/gpt_shakespeare.yaml",
        *settings,
        *words,
    ]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONSAFEPATH": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


if __name__ == "__main__":
    sys.exit(main())
