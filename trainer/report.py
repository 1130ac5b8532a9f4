"""report.html: one page that shows a stranger what a run did. No request leaves it, no script is needed to read it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .report_page import render
from .report_series import Curves, curves
from .summary import read_config, read_summary, techniques_of_phases
from .trackers import read_lines

__all__ = ["RunRecord", "read_run", "write_report"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that the page is made of."""

    name: str
    summary: Mapping[str, Any]
    curves: Curves
    config: Mapping[str, Any]
    config_text: str


def read_run(run_folder: str | Path) -> RunRecord:
    """What a run folder holds. raises: CheckpointError where there is no summary yet."""
    folder = Path(run_folder)
    summary = read_summary(folder)
    config = read_config(folder)
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    order = list(techniques_of_phases(config))
    found = curves(read_lines(folder / "metrics.jsonl"), order)
    name = str(config.get("name") or folder.resolve().name)
    return RunRecord(name=name, summary=summary, curves=found, config=config, config_text=text)


def write_report(run_folder: str | Path) -> Path:
    """Writes report.html from metrics.jsonl, summary.json and config.yaml, in one move, and gives its path.

    raises: CheckpointError where there is no summary yet.   cost: reads the metrics once; curves are thinned out,
    so the page stays below a few hundred kB.
    """
    run = read_run(run_folder)
    path = Path(run_folder) / "report.html"
    page = render(run.name, run.summary, run.curves, run.config, run.config_text)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path
