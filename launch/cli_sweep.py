"""`forgepress sweep` and `forgepress compare`: many runs of one config, and what they gave."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ConfigError
from .commands import app, command, load

if TYPE_CHECKING:
    from .sweep import Sweep


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
        Literal["grid", "random", "tpe"],
        typer.Option(
            "--search", help="Every combination, --points at random, or where Optuna hopes for most."
        ),
    ] = "grid",
    points: Annotated[int, typer.Option("--points", min=1, help="random and tpe: how many.")] = 10,
    goal: Annotated[
        list[str] | None,
        typer.Option(
            "--goal", help="tpe: a metric, or bytes; several may be given. Else the main metric and bytes."
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The sweep's folder below checkpoint.folder.")] = "",
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Ranks at once, over all points.")] = 1,
    slurm: Annotated[
        str | None,
        typer.Option(
            "--slurm",
            metavar="OPTIONS",
            help="As one job array: '--gpus-per-node 8 --time 2:00:00', as for slurm.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points and run nothing.")] = False,
) -> int:
    """Run CONFIG once for each combination of settings, side by side; the same command again goes on.

    Points that have finished or failed are not run again. Ends with a table, results.csv and a Pareto plot.
    """
    from . import sweep as sweeping
    from .sweep_points import drawn, split_axes
    from .sweep_report import text_table

    fixed, axes = split_axes(words)
    if not axes:
        raise ConfigError(
            "nothing to sweep: give a setting several values, key=a,b or key=range(low,high,step)"
        )
    if search == "tpe":
        from .sweep_search import import_optuna

        import_optuna()
    elif goal:
        raise ConfigError("--goal is for --search tpe; a grid and random points search for nothing")
    asked = sweeping.Sweep(
        folder=Path(),
        config=tuple(fixed),
        axes=tuple(axes),
        search=search,
        count=0 if search == "grid" else points,
        goals=tuple(goal or ()),
    )
    found = asked.all_points() or drawn(axes, 1)  # tpe: one, to see that the config is right
    configs = [load([*fixed, *(f"{k}={v}" for k, v in point.settings.items())]) for point in found]
    needed = max(config.parallel.ranks for config in configs)
    if needed > ranks:
        raise ConfigError(
            f"a point needs {needed} ranks, but --ranks {ranks} may run at once; give --ranks {needed}"
        )
    if dry_run and slurm is None:
        typer.echo(text_table([{"point": point.number, **point.settings} for point in asked.all_points()]))
        return 0
    folder = Path(configs[0].checkpoint.folder) / (name or f"{configs[0].name}-sweep")
    asked = replace(asked, folder=folder)
    asked.keep()
    if slurm is not None:
        return _as_array(asked, slurm, configs[0], at_once=ranks // needed, dry_run=dry_run)
    more = ["--ranks", str(needed)] if configs[0].parallel.derived else []
    failed = sweeping.run_points(asked, at_once=ranks // needed, say=typer.echo, more=more)
    _report(asked)
    return 1 if failed else 0


def _as_array(sweep: "Sweep", options: str, config: Any, *, at_once: int, dry_run: bool) -> int:
    from . import slurm as jobs
    from .cli_slurm import job_of, options_in
    from .slurm_script import template_text
    from .sweep_slurm import array_of

    given = options_in(options)
    jobs.refuse_queued(sweep.folder)
    job = array_of(sweep, job_of(given), config, at_once=at_once)
    if job.array.startswith("%"):  # nothing is open
        _report(sweep)
        return 0
    if dry_run or given["dry_run"]:
        typer.echo(job.script(template_text(given["template"])), nl=False)
        return 0
    number = jobs.submit(job, given["template"])
    typer.echo(
        f"job {number} is submitted, points {job.array.replace('%', ', at a time ')}; follow it: forgepress slurm "
        f"status {sweep.folder} (or logs, cancel); the same command again goes on with what is left, or shows results"
    )
    if not given["wait"]:
        return 0
    code = jobs.wait_for(number)
    _report(sweep)
    return code


def _report(sweep: "Sweep") -> None:
    from .sweep import results
    from .sweep_report import metrics_of, pareto, text_table, write_results

    lines = results(sweep.folder, sweep.known())
    best = pareto(lines, list(sweep.goals) or metrics_of(lines))
    shown = [{**line, "best": "*" if place in best else ""} for place, line in enumerate(lines)]
    typer.echo(text_table(shown))
    typer.echo("results: " + ", ".join(map(str, write_results(sweep.folder, lines))))


@command(app, "compare")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders, or names below runs/.")
    ],
) -> None:
    """Show what differs between runs: settings first, then results."""
    from .sweep_report import compare as text_of

    typer.echo(text_of([run if run.exists() else Path("runs") / run for run in runs]))
