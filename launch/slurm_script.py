"""The sbatch script of a run: readable text from plain values, so that a test can hold it to the letter."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ..errors import ConfigError

TEMPLATE = Path(__file__).with_name("slurm_job.sh")
TEMPLATE_VARIABLE = "FORGEPRESS_SLURM_TEMPLATE"
_PLACES = ("directives", "name", "folder", "most_restarts", "prepare", "srun_options", "command")


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What a site and a user ask SLURM for. Texts go to sbatch as they are."""

    name: str
    folder: Path  # where the job runs, and where relative paths of the config begin
    log: Path  # %j and %a become the job's and the array task's number
    train: tuple[str, ...]  # words after `forgepress`; {array} becomes the number of the array task
    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: str = ""  # "8", "a100:4"; empty: none are asked for
    time: str = ""  # as sbatch takes it: minutes, hours:minutes:seconds, days-hours
    cpus_per_rank: int = 0  # 0: as the site has it
    account: str = ""
    partition: str = ""
    container: str = ""  # FILE.sif runs by apptainer, anything else by the site's pyxis plugin
    mounts: tuple[str, ...] = ()  # HOST:CONTAINER, besides the job's folder
    exclusive: bool = False
    dependency: str = ""  # "afterok:17"
    array: str = ""  # "0-5%2"
    signal_seconds: int = 120  # before the time limit: what a save may take
    most_restarts: int = 20
    prepare: tuple[str, ...] = ()  # shell lines before the ranks start: module load …
    extra: tuple[str, ...] = ()  # more sbatch options, as they are: "--constraint=h100"
    python: str = "python3"

    def script(self, template: str | None = None) -> str:
        """The text for sbatch. raises: ConfigError where an own template lacks a place or has an unknown one."""
        values = {
            "directives": "\n".join(f"#SBATCH {line}" for line in self._directives()),
            "name": self.name,
            "folder": shlex.quote(str(self.folder)),
            "most_restarts": str(self.most_restarts),
            "prepare": "".join(f"{line}\n" for line in self.prepare),
            "srun_options": " ".join(self._srun_options()),
            "command": self._command(),
        }
        text = template_text() if template is None else template
        try:
            return Template(text).substitute(values)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"the SLURM template has {error}; it may use ${{{'}, ${'.join(_PLACES)}}}, "
                "and writes $$ for a shell's $"
            ) from error

    def _directives(self) -> list[str]:
        options = {
            "job-name": self.name,
            "account": self.account,
            "partition": self.partition,
            "nodes": str(self.nodes),
            "ntasks-per-node": str(self.ranks_per_node),
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": str(self.cpus_per_rank or ""),
            "time": self.time,
            "array": self.array,
            "dependency": self.dependency,
            "signal": f"B:USR1@{self.signal_seconds}",
            "output": str(self.log),
            "open-mode": "append",
        }
        lines = [f"--{name}={value}" for name, value in options.items() if value]
        lines += ["--exclusive"] if self.exclusive else []
        return [*lines, "--requeue", *self.extra]

    def _srun_options(self) -> list[str]:
        # Our own watch ends all ranks with one message; srun's would end them before they can say it.
        options = ["--kill-on-bad-exit=0"]
        if self.cpus_per_rank:
            options.append(f"--cpus-per-task={self.cpus_per_rank}")  # since 22.05 steps do not take it over
        if self.container and not self.container.endswith(".sif"):
            mounts = ",".join((f"{self.folder}:{self.folder}", *self.mounts))
            options += [
                f"--container-image={shlex.quote(self.container)}",
                f"--container-mounts={shlex.quote(mounts)}",
                f"--container-workdir={shlex.quote(str(self.folder))}",
            ]
        return options

    def _command(self) -> str:
        words = [self.python, "-m", "forgepress.launch", *self.train]
        if self.container.endswith(".sif"):
            binds = [part for mount in (str(self.folder), *self.mounts) for part in ("--bind", mount)]
            gpu = ["--nv"] if self.gpus_per_node else []
            words = ["apptainer", "exec", *gpu, *binds, "--pwd", str(self.folder), self.container, *words]
        return " ".join(map(_quoted, words))


def template_text(path: Path | None = None) -> str:
    """The template of `path`, of the variable FORGEPRESS_SLURM_TEMPLATE, or our own. raises: ConfigError."""
    given = path or (Path(found) if (found := os.environ.get(TEMPLATE_VARIABLE)) else None)
    try:
        return (given or TEMPLATE).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the SLURM template {given} cannot be read ({error.strerror})") from error


def array_words(words: Sequence[str]) -> list[str]:
    """The words that stand for another value in each task of an array."""
    return [word for word in words if "{array}" in word]


def _quoted(word: str) -> str:
    parts = [shlex.quote(part) if part else "" for part in word.split("{array}")]
    return '"$SLURM_ARRAY_TASK_ID"'.join(parts)
