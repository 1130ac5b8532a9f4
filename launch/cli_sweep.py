"""`forgepress sweep` and `forgepress compare`: many runs of one config, and what they gave."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import ConfigError
from .commands import app, command, load


@command(app, "sweep")
def sweep(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... KEY=VALUE,VALUE,... KEY=range(LOW,HIGH,STEP)...",
            help="As for train; settings with several values are what is swept.",
        ),
    ],
    search: Annotated[
        Literal["grid", "random"], typer.Option("--search", help="Every combination, or --points at random.")
    ] = "grid",
    points: Annotated[int, typer.Option("--points", min=1, help="random: how many.")] = 10,
    name: Annotated[str, typer.Option("--name", help="The sweep's folder below checkpoint.folder.")] = "",
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Ranks at once, over all points.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points and run nothing.")] = False,
) -> int:
    """Run CONFIG once for each combination of settings, side by side; the same command again goes on.

    Points that have finished or failed are not run again. Ends with a table, results.csv and a Pareto plot.
    """
    from . import sweep as sweeping
    from .sweep_report import metrics_of, pareto, text_table, write_results

    fixed, axes = sweeping.split_axes(words)
    if not axes:
        raise ConfigError(
            "nothing to sweep: give a setting several values, key=a,b or key=range(low,high,step)"
        )
    found = sweeping.grid(axes) if search == "grid" else sweeping.drawn(axes, points)
    configs = [load([*fixed, *(f"{k}={v}" for k, v in point.settings.items())]) for point in found]
    needed = max(config.parallel.ranks for config in configs)
    if needed > ranks:
        raise ConfigError(
            f"a point needs {needed} ranks, but --ranks {ranks} may run at once; give --ranks {needed}"
        )
    folder = Path(configs[0].checkpoint.folder) / (name or f"{configs[0].name}-sweep")
    if dry_run:
        typer.echo(text_table([{"point": point.number, **point.settings} for point in found]))
        return 0
    sweeping.keep_points(folder, fixed, found)
    failed = sweeping.run_points(folder, fixed, found, at_once=ranks // needed, say=typer.echo)
    lines = sweeping.results(folder, found)
    best = pareto(lines, metrics_of(lines))
    typer.echo(
        text_table([{**line, "best": "*" if place in best else ""} for place, line in enumerate(lines)])
    )
    typer.echo("results: " + ", ".join(map(str, write_results(folder, lines))))
    return 1 if failed else 0


@command(app, "compare")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders, or names below runs/.")
    ],
) -> None:
    """Show what differs between runs: settings first, then results."""
    from .sweep_report import compare as text_of

    typer.echo(text_of([run if run.exists() else Path("runs") / run for run in runs]))
