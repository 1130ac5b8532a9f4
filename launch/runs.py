"""The runs of a folder as a table: state, step, main metric. Reads what runs leave behind; needs no torch."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..trainer.history import FILE, starts
from ..trainer.run_lock import holder
from ..trainer.summary import read_config

_TAIL = 1 << 20  # bytes of metrics.jsonl that are looked at: its last lines
_NOT_METRICS = {"step", "phase", "kind"}


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One run folder at a glance."""

    name: str
    state: str  # submitted, running, finished, failed, preempted, killed
    step: int | None = None  # optimizer steps in the metrics so far
    total_steps: int | None = None
    metric: str = ""  # the main metric's name
    value: float | None = None
    started: str = ""  # of the last session, ISO 8601
    sessions: int = 0
    host: str = ""
    reason: str = ""  # why it failed or stopped


def find_runs(folder: Path) -> list[RunLine]:
    """Every run below `folder` (a run folder itself is one), the last started first. raises: ConfigError if none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; want the one that holds runs (checkpoint.folder)")
    found = [read_run(path) for path in _run_folders(folder)]
    return sorted(found, key=lambda run: run.started, reverse=True)


def read_run(folder: Path) -> RunLine:
    """One run's line."""
    sessions = starts(folder)
    last = sessions[-1] if sessions else {}
    end = last.get("end")
    who = holder(folder)
    summary = _json(folder / "summary.json")
    name, value, step = _progress(folder, summary)
    if who is not None:
        state, reason = "running", f"process {who.get('process')} on {who.get('host')}"
    elif end:
        state, reason = end["state"], end["reason"] if end["state"] != "finished" else ""
    elif last:
        state, reason = "killed", "ended without a word: killed, or its host was lost"
    elif summary:
        state, reason = "finished", ""
    else:
        job = _json(folder / "slurm" / "job.json").get("job")
        state, reason = (
            ("submitted", f"SLURM job {job}: see forgepress slurm status")
            if job
            else ("failed", "ended before the first step")
        )
    return RunLine(
        name=folder.name,
        state=state,
        step=summary.get("steps", step) if state == "finished" else step,
        total_steps=last.get("total_steps"),
        metric=name,
        value=value,
        started=last.get("at", ""),
        sessions=len(sessions),
        host=", ".join(last.get("hosts", [])),
        reason=reason,
    )


def table(runs: Sequence[RunLine]) -> str:
    """Aligned columns for the terminal; why a run stopped stands at the end of its line."""
    rows = [["NAME", "STATE", "STEP", "METRIC", "STARTED", "STARTS", ""]]
    for run in runs:
        step = "" if run.step is None else str(run.step)
        if run.total_steps:
            step = f"{run.step or 0}/{run.total_steps}"
        metric = "" if run.value is None else f"{run.metric} {run.value:.4g}"
        started = run.started[:16].replace("T", " ")
        rows.append([run.name, run.state, step, metric, started, str(run.sessions), run.reason[:100]])
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]]).rstrip()
        for row in rows
    )


def as_json(runs: Sequence[RunLine]) -> str:
    """The same as a JSON list, for scripts."""
    return json.dumps([asdict(run) for run in runs], indent=2, ensure_ascii=False)


def _run_folders(folder: Path) -> Iterator[Path]:
    marks = (FILE, "config.yaml", "slurm/job.json")

    def is_run(path: Path) -> bool:  # a sweep's folder may hold a job, but the runs are inside
        return not (path / "sweep.json").is_file() and any((path / mark).is_file() for mark in marks)

    if is_run(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and is_run(path):
            yield path


def _progress(folder: Path, summary: dict[str, Any]) -> tuple[str, float | None, int | None]:
    """Main metric's name and last value, and the last step, out of the metrics."""
    step, evaluation, loss = None, {}, None
    for line in _last_lines(folder / "metrics.jsonl"):
        step = max(step or 0, int(line.get("step") or 0))
        if line.get("kind") == "evaluate":
            evaluation = line
        loss = line.get("loss", loss)
    metrics = summary.get("metrics") or {k: v for k, v in evaluation.items() if k not in _NOT_METRICS}
    best = (read_config(folder).get("evaluate") or {}).get("best") or {}
    name = best.get("metric") or next(iter(metrics), "")
    if isinstance(metrics.get(name), int | float):
        return name, float(metrics[name]), step
    return ("loss", float(loss), step) if isinstance(loss, int | float) else ("", None, step)


def _last_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        for line in file:
            try:
                values = json.loads(line)
            except ValueError:  # the first one is cut, the last one may still be written
                continue
            if isinstance(values, dict):
                yield values


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
