"""The command line. Every command imports what it needs when it runs, so that help and config errors are quick."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, ForgepressError
from . import cli_runs, cli_slurm, cli_sweep  # noqa: F401  (they register their commands)
from .commands import (
    Ranks,
    Words,
    app,
    command,
    existing,
    load,
    mesh_and_engine,
    split_words,
    verify_app,
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 config error, 75 stopped after a save, 130 Ctrl-C."""
    if "FORGEPRESS_PARENT" in os.environ:
        from .rank import die_with_parent

        die_with_parent()
    # Last on the path: a config's "package.module:function" may lie here, but nothing here hides a library.
    if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
        sys.path.pop(0)
    sys.path.append(os.getcwd())
    try:
        app(args=arguments, prog_name="forgepress")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@command(app, "train")
def train(
    words: Words,
    ranks: Ranks = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--overwrite", "--fresh", help="Start over; what the run of this name has left is deleted."
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run of this name although the config has changed."),
    ] = False,
) -> int:
    """Train, compress and export as CONFIG says.

    Starts its ranks by itself; under torchrun, srun or mpirun it joins what is there. A run of the same name and config
    goes on where it stopped. Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint first (exit code 75).
    """
    from .environment import read_place

    place = read_place()
    starts_ranks = place.launched_by == "nothing"
    try:
        # Each rank checks the techniques again; here that would cost seconds, for an import of torch.
        config = load(words, techniques=not starts_ranks)
        from .collisions import refuse_collision

        refuse_collision(config, resume=resume, overwrite=fresh)
    except ForgepressError as error:
        if starts_ranks:
            raise
        return _fail_together(error, place)
    if starts_ranks:
        from .collisions import refuse_running
        from .devices import ranks_here
        from .local import run_local
        from .logs import open_log

        needed = ranks_here(config, ranks)
        _import_for(config, words, needed)
        open_log(config.run_folder, 0).close()  # said here once where it cannot be, not by each rank
        refuse_running(config.run_folder)
        flags = [flag for flag, given in (("--fresh", fresh), ("--resume", resume)) if given]
        return run_local(
            ["train", *words, *flags],
            needed,
            work=lambda: _train_as_rank(config, fresh=fresh),
            run_folder=config.run_folder,
            timeout=config.parallel.timeout,
        )
    if ranks not in (None, "auto", str(place.world)):
        raise ConfigError(
            f"--ranks {ranks} was given, but {place.launched_by} has already started {place.world} ranks; "
            "leave --ranks out"
        )
    return _train_as_rank(config, fresh=fresh)


def _import_for(config: Any, words: list[str], ranks: int) -> None:
    """Imports torch and what the run needs once, here, for all ranks. raises: ConfigError of a wrong technique."""
    from .environment import threads_per_rank

    os.environ.setdefault(
        "OMP_NUM_THREADS", str(threads_per_rank(ranks))
    )  # libraries read it when they are loaded
    from ..trainer.config_techniques import check_technique
    from ..trainer.start import preload

    entries = [technique for phase in config.phases for technique in phase.techniques]
    if any(check_technique(entry.name, entry.settings) for entry in entries):
        load(words)  # says what is wrong, and where
    preload(config.on(ranks))


def _train_as_rank(config: Any, *, fresh: bool) -> int:
    """Trains as the rank that the environment describes; the process' exit code."""
    from .environment import is_restart, read_place
    from .network import set_defaults
    from .rank import die_with_parent, run_rank

    die_with_parent()
    place = read_place()
    set_defaults(place)

    def work(placed: Any) -> None:
        from ..trainer.start import train as train_here

        # Started over once: what a restart finds is this run's own. The watch has counted the starts of all hosts.
        train_here(config, fresh=fresh and not is_restart(), place=placed)

    return run_rank(work, place, run_folder=config.run_folder, timeout=config.parallel.timeout)


@command(app, "check")
def check(words: Words, ranks: Ranks = None) -> None:
    """Check CONFIG without training: settings, data, mesh arithmetic, memory. Needs no GPU and no cluster."""
    from ..trainer.config_file import load_with_origins

    config, origins = load_with_origins(*split_words(words))
    from ..trainer import preflight
    from ..trainer.preflight_report import print_report
    from .devices import ranks_here

    print_report(preflight.check(config, ranks_here(config, ranks), origins=origins))


@command(verify_app, "parity")
def verify_parity(
    words: Words,
    mesh: Annotated[
        list[str],
        typer.Option(
            "--mesh",
            help="Degrees such as shard=2,tensor=2, perhaps with an engine: shard=2,engine=zero-3; several times.",
        ),
    ],
) -> int:
    """Train CONFIG on one process and on each mesh and compare losses, masks and weights."""
    config = load(words)
    from . import verify

    return verify.parity(config, [mesh_and_engine(text) for text in mesh])


@command(verify_app, "resume")
def verify_resume(
    words: Words,
    kill_at: Annotated[
        list[int] | None, typer.Option("--kill-at", help="Step at which the run is killed.")
    ] = None,
    then_mesh: Annotated[
        list[str] | None, typer.Option("--then-mesh", help="Mesh to go on with after a kill.")
    ] = None,
) -> int:
    """Kill CONFIG's run in the middle, resume it and compare with a run that was never stopped."""
    config = load(words)
    from . import verify

    return verify.resume(config, kill_at or [], [mesh_and_engine(text) for text in then_mesh or []])


@command(app, "export")
def export(
    path: Annotated[
        Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder or one checkpoint in it.")
    ],
    format: Annotated[
        list[str] | None, typer.Option("--format", help="Formats; by default those of the config.")
    ] = None,
) -> None:
    """Write the artifacts of a finished run or of one checkpoint."""
    from ..trainer import export as exporting

    for written in exporting.export(existing(path), formats=format or None):
        typer.echo(str(written))


@command(app, "convert")
def convert(
    path: Annotated[
        Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder or one checkpoint in it.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder to write.")],
    format: Annotated[
        str, typer.Option("--format", help="safetensors, or transformers for models that come from there.")
    ] = "safetensors",
) -> None:
    """Write a checkpoint's plain weights for other programs, whatever engine and mesh trained it."""
    from ..trainer.convert import convert as write

    typer.echo(str(write(existing(path), folder, format=format)))


@command(app, "report")
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]) -> None:
    """Write RUN's report.html from its metrics and summary."""
    from ..trainer.report import write_report

    typer.echo(str(write_report(existing(run))))


@command(app, "techniques")
def list_techniques(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one with all its settings.")
    ] = None,
) -> None:
    """List the compression techniques, or describe one."""
    from .describe import describe_technique, table_of_techniques

    typer.echo(describe_technique(name) if name else table_of_techniques())


@command(app, "schema")
def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    from ..trainer.config_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@command(app, "bench")
def bench(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT | data CONFIG", help="Artifact file or folder; or data and a config."
        ),
    ],
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Batch sizes; by default 1 and 32.")
    ] = None,
) -> None:
    """Measure an artifact's latency here, or with `bench data CONFIG` whether the loader can feed the step."""
    if words[0] == "data" and len(words) > 1:
        from ..trainer.bench_data import bench_data

        bench_data(load(words[1:]))
        return
    if len(words) > 1:
        raise ConfigError(f"bench takes one artifact, given {' '.join(words)}; or: bench data CONFIG")
    from ..trainer.bench import bench_artifact

    bench_artifact(existing(Path(words[0])), batches=batch or (1, 32))


def _fail_together(error: ForgepressError, place: Any) -> int:
    """An error that every rank of torchrun or srun will meet: said once, not once per rank."""
    from .rank import run_rank

    def fail(_: Any) -> None:
        raise error

    return run_rank(fail, place)


if __name__ == "__main__":
    sys.exit(main())
