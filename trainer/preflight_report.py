"""The report of `forgepress check`: plain values, and the same as a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from .config_errors import Problem
from .preflight_memory import MemoryRow
from .preflight_rules import in_bytes
from .preflight_traffic import TrafficRow


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase in optimizer steps, with how many parameters each technique matches."""

    name: str
    steps: int | None
    """None where the phase counts epochs of data that could not be opened."""
    techniques: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `forgepress check` found. Memory is that of the rank that holds most."""

    name: str
    ranks: int
    mesh: Mapping[str, int]
    rows: int | None = None
    columns: Mapping[str, str] | None = None
    """Column → type and shape of one row."""
    batches_per_epoch: int | None = None
    parameters: int | None = None
    stages: tuple[tuple[str, ...], ...] = ()
    """Modules of each pipeline stage; empty without a pipeline."""
    phases: tuple[PhasePlan, ...] = ()
    memory: tuple[MemoryRow, ...] = ()
    traffic: tuple[TrafficRow, ...] = ()
    """What a rank sends in a step, axis by axis."""
    checkpoint_bytes: int | None = None
    """Of the whole run on disk, one checkpoint."""
    pipeline_bubble: float = 0.0
    """Share of a step's time in which a pipeline rank waits, if all stages take equally long."""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """Allowed, but perhaps not meant."""

    def as_json(self) -> dict[str, Any]:
        """The report as plain values, with the sums of the memory table."""
        totals = {f"{where}_bytes": self.memory_bytes(where) for where in ("device", "host")}
        return {**asdict(self), **totals}

    def memory_bytes(self, where: str = "device") -> int:
        """Sum of the memory table on the device or the host."""
        return sum(row.bytes for row in self.memory if row.where == where)

    def __str__(self) -> str:
        text = StringIO()
        print_report(self, Console(file=text, width=110, no_color=True))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def print_report(report: Report, console: Console | None = None) -> None:
    """The report as a page: facts, phases, memory of the fullest rank, notes, problems."""
    console = console or Console()
    for table in (_facts(report), _phases(report), _memory(report), _traffic(report)):
        if table.row_count:
            console.print(table)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    for problem in report.problems:
        console.print(f"problem:{str(problem)[1:]}", markup=False, highlight=False, soft_wrap=True)
    if not report.problems:
        console.print("this run can start", style="green")


def _facts(report: Report) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    used = [f"{axis} {degree}" for axis, degree in report.mesh.items() if degree > 1]
    table.add_row(
        report.name,
        f"{report.ranks} {'rank' if report.ranks == 1 else 'ranks'}: {' × '.join(used) or 'one process'}",
    )
    if report.rows is not None:
        columns = ", ".join(f"{name} {what}" for name, what in (report.columns or {}).items())
        table.add_row(
            "data", f"{report.rows:,} rows, {report.batches_per_epoch:,} batches an epoch; {columns}"
        )
    if report.parameters is not None:
        table.add_row("model", f"{report.parameters:,} parameters")
    if report.stages:
        table.add_row("stages", " | ".join(" ".join(stage) for stage in report.stages))
        table.add_row("bubble", f"{report.pipeline_bubble:.0%} of each step, if stages take equally long")
    if report.checkpoint_bytes is not None:
        table.add_row("checkpoint", f"{in_bytes(report.checkpoint_bytes)} on disk")
    return table


def _phases(report: Report) -> Table:
    table = Table("phase", "steps", "techniques (parameters matched)", title="Phases", title_justify="left")
    for phase in report.phases:
        matched = ", ".join(f"{name} ({count})" for name, count in phase.techniques)
        table.add_row(phase.name, "?" if phase.steps is None else f"{phase.steps:,}", matched or "–")
    return table


def _memory(report: Report) -> Table:
    table = Table(title="Memory of the fullest rank", title_justify="left")
    for name, justify in (("what", "left"), ("bytes", "right"), ("where", "left"), ("counted as", "left")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    for row in report.memory:
        table.add_row(row.what, in_bytes(row.bytes), row.where, row.how)
    if report.memory:
        table.add_section()
        table.add_row("together", in_bytes(report.memory_bytes()), "device")
    return table


def _traffic(report: Report) -> Table:
    table = Table(title="Sent by a rank in each step", title_justify="left")
    for name, justify in (("axis", "left"), ("bytes", "right"), ("counted as", "left")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    for row in report.traffic:
        table.add_row(row.axis, in_bytes(row.bytes), row.how)
    return table
