"""Runs of the command line as benchmarks make them: finished ones are not trained again."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_everywhere: list[str] = []  # overrides of every run of this process


def train(
    config: str, runs: Path, name: str, words: Sequence[str] = (), *, ranks: int = 1, timeout: int = 3600
) -> dict[str, Any]:
    """The summary of examples/`config` with overrides `words`, in the folder `runs`/`name`.

    A run that was finished with the same words is not looked at again: delivery would score and time it anew.
    timeout: seconds without progress that count as a hang; generous, for machines that are shared.
    """
    done = runs / name / "benchmark.json"
    asked = json.dumps([config, *_everywhere, *words, ranks])
    summary = runs / name / "summary.json"
    if done.is_file() and done.read_text() == asked:
        return json.loads(summary.read_text())
    settings = [f"name={name}", f"checkpoint.folder={runs}", f"parallel.timeout={timeout}"]
    settings += [*_everywhere, *words]
    command = [sys.executable, "-m", "forgepress.launch", "train", f"examples/{config}", *settings]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONSAFEPATH": "1"}
    subprocess.run([*command, "--ranks", str(ranks)], cwd=ROOT, env=environment, check=True)
    done.write_text(asked)
    return json.loads(summary.read_text())


def parser(description: str | None) -> argparse.ArgumentParser:
    """What all such benchmarks are told: the folder of the run folders (whole path) and the seeds."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--runs", type=_whole, default=_whole("runs"), help="folder of the run folders")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    everywhere = (
        "for all runs, such as precision=fp32 where a CPU makes bf16 of many instructions; may be repeated"
    )
    made.add_argument("--override", metavar="KEY=VALUE", type=_for_all, action="append", help=everywhere)
    return made


def _for_all(override: str) -> str:
    _everywhere.append(override)
    return override


def _whole(path: str) -> Path:
    return Path(path).resolve()


def cifar_network(runs: Path, seed: int = 0, epochs: int = 16) -> dict[str, Any]:
    """The summary of examples/cifar_vgg.yaml, the dense network that others start from, and its name."""
    name = "cifar_vgg" if seed == 0 else f"cifar_vgg-{seed}"
    words = [f"seed={seed}", f"phases.0.epochs={epochs}"]
    return {**train("cifar_vgg.yaml", runs, name, words), "name": name}


def error_of(metrics: dict[str, float]) -> float:
    """Test error in percent."""
    return 100 * (1 - metrics["accuracy"])


def artifact(summary: dict[str, Any], format: str) -> dict[str, Any]:
    """The entry of one artifact in a summary."""
    return next(entry for entry in summary["artifacts"] if entry["format"] == format)


def speed_up(entry: dict[str, Any], batch: int) -> float:
    """How many times faster the reloaded artifact is than the dense model, one thread, medians."""
    return entry["latency_ms"]["cases"][f"batch {batch}, 1 thread"]["speed_up"]


def row(case: str, values: Sequence[float], unit: str, digits: int = 3) -> dict[str, Any]:
    """Mean over seeds, with the range where there are several."""
    line: dict[str, Any] = {"case": case, "value": round(statistics.mean(values), digits), "unit": unit}
    if len(values) > 1:
        spread = {"low": round(min(values), digits), "high": round(max(values), digits)}
        line |= {**spread, "repeats": len(values)}
    return line
