"""Commands about runs and the machine: `runs`, `compare`, `doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from .commands import app, command


@command(app, "runs")
def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds runs, or one run.")
    ] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="For scripts: a JSON list.")] = False,
) -> None:
    """List runs with state (running, finished, failed why, preempted, killed, submitted), step and main metric."""
    from .runs import as_json, find_runs, table

    found = find_runs(folder)
    typer.echo(as_json(found) if json else table(found) if found else f"no runs in {folder}")


@command(app, "doctor")
def doctor(
    folder: Annotated[Path, typer.Option("--folder", help="Where runs go: its disk is looked at.")] = Path(
        "runs"
    ),
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Ranks of the all-reduce that is tried.")] = 2,
) -> int:
    """Look at this machine: libraries, GPUs, SLURM, disk, network, clock, an all-reduce; and what to do."""
    from .doctor import examine

    bad = 0
    for finding in examine(folder, ranks=ranks):
        typer.echo(str(finding))
        bad += finding.well is False
    return 1 if bad else 0
