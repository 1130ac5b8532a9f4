"""`forgepress slurm`: a config as a job, and what one wants to know of it afterwards."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .commands import app, command

if TYPE_CHECKING:
    from .slurm_script import SlurmJob

_VERBS = ("status", "logs", "cancel")


@command(app, "slurm")
def slurm(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... [KEY=VALUE]... | status RUN | logs RUN | cancel RUN",
            help="As for train; {array} in a setting is the number of the array's task. Or a run that was submitted.",
        ),
    ],
    nodes: Annotated[int, typer.Option("--nodes", min=1)] = 1,
    gpus_per_node: Annotated[
        str, typer.Option("--gpus-per-node", help="Number, or type:number; one rank for each.")
    ] = "",
    ranks_per_node: Annotated[
        int | None, typer.Option("--ranks-per-node", min=1, help="Without GPUs.")
    ] = None,
    cpus_per_rank: Annotated[int, typer.Option("--cpus-per-rank", min=0)] = 0,
    time: Annotated[str, typer.Option("--time", help="Of one start: 12:00:00.")] = "",
    account: Annotated[str, typer.Option("--account")] = "",
    partition: Annotated[str, typer.Option("--partition")] = "",
    container: Annotated[
        str, typer.Option("--container", help="FILE.sif (apptainer), or an image for pyxis.")
    ] = "",
    mount: Annotated[list[str] | None, typer.Option("--mount", help="HOST:CONTAINER")] = None,
    exclusive: Annotated[bool, typer.Option("--exclusive")] = False,
    dependency: Annotated[str, typer.Option("--dependency", help="afterok:17")] = "",
    array: Annotated[str, typer.Option("--array", help="0-5%2")] = "",
    signal_seconds: Annotated[
        int, typer.Option("--signal-seconds", min=1, help="Before the time limit, to save.")
    ] = 120,
    max_restarts: Annotated[int, typer.Option("--max-restarts", min=0, help="Requeues of any kind.")] = 20,
    prepare: Annotated[
        list[str] | None, typer.Option("--prepare", help="Shell line before the ranks: module load …")
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option("--sbatch", help="Another sbatch option: --sbatch=--constraint=h100")
    ] = None,
    template: Annotated[
        Path | None, typer.Option("--template", help="Own script; FORGEPRESS_SLURM_TEMPLATE.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script and submit nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; its exit code.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="As for train.")] = False,
    save: Annotated[bool, typer.Option("--save", help="cancel: save, and go on later.")] = False,
    lines: Annotated[int, typer.Option("--lines", min=1, help="logs: so many from the end.")] = 50,
) -> int | None:
    """Submit CONFIG to SLURM; it saves before the time limit or preemption, is requeued and goes on by itself."""
    from . import slurm as jobs
    from .slurm_script import template_text

    if words[0] in _VERBS:
        return _about_run(words, save=save, lines=lines)
    config, job = jobs.prepare(words, job_of(context.params), resume=resume)
    if dry_run:
        typer.echo(job.script(template_text(template)), nl=False)
        return 0
    number = jobs.submit_job(config, job, template)
    run = job.log.parent.parent
    typer.echo(f"job {number} is submitted; follow it: forgepress slurm status {run} (or logs, cancel)")
    return jobs.wait_for(number) if wait else 0


def job_of(options: Mapping[str, Any]) -> "SlurmJob":
    """What the options of `forgepress slurm`, by name, ask SLURM for; its name, folder and words are still open."""
    from .slurm import own_python
    from .slurm_script import SlurmJob

    same = (
        "nodes",
        "gpus_per_node",
        "time",
        "cpus_per_rank",
        "account",
        "partition",
        "container",
        "exclusive",
    )
    return SlurmJob(
        name="",
        folder=Path(),
        log=Path(),
        train=(),
        **{name: options[name] for name in (*same, "dependency", "array", "signal_seconds")},
        ranks_per_node=options["ranks_per_node"] or _gpus(options["gpus_per_node"]),
        mounts=tuple(options["mount"] or ()),
        most_restarts=options["max_restarts"],
        prepare=tuple(options["prepare"] or ()),
        extra=tuple(options["sbatch"] or ()),
        python="python3" if options["container"] else own_python(),
    )


def options_in(text: str) -> dict[str, Any]:
    """The options of `forgepress slurm` as they stand in one text: "--nodes 2 --time 60"."""
    command = typer.main.get_command(app).commands["slurm"]  # pyright: ignore[reportAttributeAccessIssue]
    return command.make_context("forgepress slurm", ["CONFIG", *shlex.split(text)]).params


def _about_run(words: list[str], *, save: bool, lines: int) -> None:
    from . import slurm as jobs

    if len(words) != 2:
        raise ConfigError(f"slurm {words[0]}: want one run folder, given {' '.join(words[1:]) or 'nothing'}")
    run = Path(words[1])
    run = run if run.exists() else Path("runs") / run
    texts = {
        "status": lambda: jobs.status(run),
        "logs": lambda: jobs.log_text(run, lines),
        "cancel": lambda: jobs.cancel(run, save=save),
    }
    typer.echo(texts[words[0]]())


def _gpus(text: str) -> int:
    """ "8" and "a100:8" are 8; nothing is one rank on the CPU."""
    if not text:
        return 1
    match = re.fullmatch(r"(?:[\w.-]+:)?([1-9]\d*)", text)
    if not match:
        raise ConfigError(f"--gpus-per-node {text!r}; want a number or TYPE:NUMBER, such as 8 or a100:8")
    return int(match[1])
