"""A sweep as one SLURM array: each task is a point, with a config of its own below the sweep's folder.

`python -m forgepress.launch.sweep_slurm SWEEP NUMBER` is run by the task of a tpe search before its ranks: it chooses
the point by what the others have given so far and writes its config.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ForgepressError
from .commands import load
from .slurm import check_ranks
from .slurm_script import SlurmJob
from .sweep import Sweep, read_sweep
from .sweep_points import Point

POINTS = "points"  # the folder of the points' configs


def array_of(sweep: Sweep, job: SlurmJob, config: Any, *, at_once: int) -> SlurmJob:
    """The job for all points of a kept sweep that are open, `at_once` at a time; writes their configs.

    raises: ConfigError where a point's mesh does not fill the job, or tpe would have to run in a container.
    """
    check_ranks(config, job)
    folder = sweep.folder.absolute()
    waiting = [point.number for point in sweep.open_points()]
    prepare = job.prepare
    if sweep.search == "tpe":
        if job.container:
            raise ConfigError(
                "--search tpe cannot run in a container: the batch node itself chooses the points"
            )
        known = {point.number for point in sweep.known()}
        waiting = sorted([*waiting, *(n for n in range(sweep.count) if n not in known)])
        choose = f'{job.python} -m forgepress.launch.sweep_slurm {folder} "$SLURM_ARRAY_TASK_ID" || exit 2'
        prepare = (*prepare, choose)
    for point in sweep.known():
        write_point(sweep, point)
    return replace(
        job,
        name=folder.name,
        folder=Path.cwd(),
        log=folder / "slurm" / "%A-%a.log",
        train=("train", str(folder / POINTS / "{array}.yaml")),
        array=f"{','.join(map(str, waiting))}%{at_once}",
        prepare=prepare,
    )


def write_point(sweep: Sweep, point: Point) -> Path:
    """The point's whole config as a file of its own."""
    config = load([*sweep.config, *point.words(sweep.folder.absolute())], techniques=False)
    path = sweep.folder / POINTS / f"{point.number}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(config.to_yaml())
    return path


def main(arguments: Sequence[str]) -> int:
    """Chooses the point of an array's task; 2 where that cannot be."""
    try:
        sweep = read_sweep(Path(arguments[0]))
        point = sweep.ask(int(arguments[1]))
        if point is not None:
            write_point(sweep, point)
    except ForgepressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
