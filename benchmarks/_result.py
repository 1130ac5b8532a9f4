"""What a benchmark leaves: one JSON file in the form that table.py reads, with what it takes to run it again."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def write(script: str, question: str, rows: Sequence[dict[str, Any]], **notes: Any) -> None:
    """results/<script>.json, and its rows on the terminal. ``script``: the caller's ``__file__``."""
    name = Path(script).stem
    result = {
        "question": question,
        "machine": f"{_processor()}, {os.cpu_count()} cores seen, torch {version('torch')}",
        "rows": list(rows),
        "command": " ".join([f"python benchmarks/{name}.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **_versions()},
        **notes,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for row in result["rows"]:
        print(f"{row['case']:<78} {row['value']:10.4g} {row.get('unit', '')}", flush=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "numpy", "accelerate", "lightning", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
