"""The tables that end a run on the terminal, made from summary.json alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from .bench import latency_table
from .figures import (
    bytes_text,
    holds,
    how_it_computes,
    main_metric,
    metric_text,
    ratio_text,
    timed_artifacts,
)
from .progress import duration

Values = Mapping[str, Any]


def print_summary(
    run_folder: str | Path, page: str | Path | None = None, *, console: Console | None = None
) -> None:
    """Phases, dense against compressed, requested against achieved, latency; `page` is named at the end."""
    values = json.loads((Path(run_folder) / "summary.json").read_text(encoding="utf-8"))
    parts: list[Any] = [phase_table(values)] if values.get("phases") else []
    parts.append(result_table(values))
    if values["techniques"]:
        parts.append(technique_table(values))
    for artifact in timed_artifacts(values):
        integer = how_it_computes(artifact)
        title = f"Latency, {artifact['format']}" if integer else "Latency"
        parts.append(latency_table(artifact["latency_ms"], title=title))
        parts.append(integer or artifact["latency_ms"].get("note", ""))
    parts.append(
        f"{values['steps']:,} steps in {duration(values['wall_seconds'])}, {values['samples_per_second']:,.0f} "
        f"samples/s, {values['data_wait_fraction']:.1%} of the time waiting for data"
    )
    if page is not None:
        parts.append(f"report: {page}")
    (console or Console()).print(Group(*parts), highlight=False, markup=False)


def phase_table(values: Values) -> Table:
    """One row per phase with its last evaluation."""
    names = list(dict.fromkeys(name for phase in values["phases"] for name in phase["metrics"]))
    table = _table("Phases", "phase", "until step", *names, "techniques")
    for phase in values["phases"]:
        shown = (metric_text(name, phase["metrics"].get(name)) for name in names)
        techniques = ", ".join(phase.get("techniques", ())) or "–"
        table.add_row(phase["phase"], f"{phase['step']:,}", *shown, techniques)
    return table


def result_table(values: Values) -> Table:
    """Dense against every artifact: bytes, ratio, the main metric and the loss."""
    metric = main_metric(values) or "metric"
    table = _table("Result", "model", "bytes on disk", "smaller by", metric, "loss")
    artifacts = values["artifacts"]
    dense_bytes = artifacts[0]["dense_bytes"] if artifacts else None
    rows = [("dense", dense_bytes, None, (values.get("dense") or {}).get("metrics", {}))]
    for artifact in artifacts:
        rows.append(
            (f"compressed, {artifact['format']}", artifact["bytes"], artifact["ratio"], artifact["metrics"])
        )
    if not artifacts:
        rows.append(("final, not exported", None, None, {"loss": values["final_loss"], **values["metrics"]}))
    for name, size, ratio, metrics in rows:
        shown = (metric_text(key, metrics.get(key)) for key in (metric, "loss"))
        table.add_row(name, bytes_text(size), ratio_text(ratio), *shown)
    return table


def technique_table(values: Values) -> Table:
    """Requested against achieved, one row per technique and quantity."""
    table = _table("Requested and achieved", "technique", "quantity", "requested", "achieved", "")
    for technique in values["techniques"]:
        verdict = "holds" if holds(technique) else "DIFFERS"
        name = technique["name"]
        for quantity in dict.fromkeys([*technique["requested"], *technique["achieved"]]):
            pair = (
                metric_text(quantity, technique[side].get(quantity)) for side in ("requested", "achieved")
            )
            table.add_row(name, quantity, *pair, verdict)
            name, verdict = "", ""
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table
