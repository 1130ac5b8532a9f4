"""Runs as SLURM jobs: submitted with a copy of their config, followed, cancelled. Needs sbatch, no torch and no GPU."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ForgepressError
from .commands import load
from .slurm_script import SlurmJob, array_words, template_text

_POLL = 2.0  # seconds between two questions to SLURM while waiting
PENDING = (
    "PENDING",
    "RUNNING",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "SUSPENDED",
    "REQUEUE_HOLD",
    "RESIZING",
)


def prepare(words: Sequence[str], job: SlurmJob, *, resume: bool = False) -> tuple[Any, SlurmJob]:
    """The config of a command line and the whole job for it; writes nothing.

    raises: ConfigError where the config is wrong, holds a secret, or its mesh does not fill the nodes.
    """
    from ..trainer.secrets import refuse_secrets
    from .collisions import refuse_collision

    changing = array_words(words)
    config = load([word.replace("{array}", "0") for word in words])
    refuse_secrets(config.model_dump(mode="json"))
    if changing and not job.array:
        raise ConfigError(f"{changing[0]}: {{array}} is the number of an array's task; give --array too")
    if job.array and not any(word.startswith("name=") for word in changing):
        raise ConfigError("--array: its tasks would all write into one run folder; give name=….{array}")
    if not job.array:
        refuse_collision(config, resume=resume)
    check_ranks(config, job)
    name = next((word[5:] for word in changing if word.startswith("name=")), config.name).replace(
        "{array}", "%a"
    )
    folder = Path(config.checkpoint.folder).absolute() / (name.replace("%a", "array") if changing else name)
    train = ["train", str(folder / "slurm" / "config.yaml"), *changing, *(["--resume"] if resume else [])]
    log = folder / "slurm" / ("%A-%a.log" if job.array else "%j.log")
    return config, replace(
        job, name=name.replace("%a", "array"), folder=Path.cwd(), log=log, train=tuple(train)
    )


def check_ranks(config: Any, job: SlurmJob) -> None:
    """Raises ConfigError where the config's mesh does not fill the job's nodes."""
    asked = job.nodes * job.ranks_per_node
    if asked != config.on(asked).parallel.ranks:
        raise ConfigError(
            f"{job.nodes} nodes × {job.ranks_per_node} ranks are {asked} ranks, but the config's mesh has "
            f"{config.parallel.ranks} ({_mesh(config)}); change --nodes, --gpus-per-node "
            "(or --ranks-per-node) or parallel"
        )


def submit_job(config: Any, job: SlurmJob, template: Path | None = None) -> str:
    """Writes script and config below the run folder, submits, notes the job's number there and gives it.

    raises: ConfigError where SLURM is absent or refuses, or a job of this run is under way.
    """
    refuse_queued(job.log.parent.parent)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    (job.log.parent / "config.yaml").write_text(config.to_yaml())
    return submit(job, template)


def submit(job: SlurmJob, template: Path | None = None) -> str:
    """Writes the script beside the job's log, submits it, notes its number there and gives it. raises: as above."""
    place = job.log.parent
    refuse_queued(place.parent)
    place.mkdir(parents=True, exist_ok=True)
    script = place / "job.sh"
    script.write_text(job.script(template_text(template)))
    answer = ask("sbatch", "--parsable", str(script))
    number = answer.strip().split(";")[0]
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    note = {"job": number, "submitted": since, "log": str(job.log), "array": job.array}
    (place / "job.json").write_text(json.dumps(note, indent=2) + "\n")
    return number


def refuse_queued(run_folder: Path) -> None:
    """Raises ConfigError if a job of this run waits or runs."""
    note = read_note(run_folder, needed=False)
    if note and (state := job_state(note["job"])[0]) in PENDING:
        raise ConfigError(
            f"{run_folder}: its job {note['job']} is {state.lower()}; cancel it "
            f"(forgepress slurm cancel {run_folder}), or take another name (name=…)"
        )


def read_note(run_folder: Path, *, needed: bool = True) -> dict[str, Any]:
    """What `submit_job` noted. raises: ConfigError where the run was never submitted and `needed`."""
    path = run_folder / "slurm" / "job.json"
    if path.exists():
        return json.loads(path.read_text())
    if needed:
        raise ConfigError(
            f"{run_folder} was not submitted to SLURM (no {path}); forgepress slurm CONFIG does that"
        )
    return {}


def job_state(number: str) -> tuple[str, str]:
    """(state, exit code as SLURM writes it, "75:0"); ("UNKNOWN", "") of a job that SLURM has forgotten."""
    try:
        text = ask("scontrol", "show", "job", "-o", number)
        states, codes = re.findall(r"JobState=(\w+)", text), re.findall(r" ExitCode=(\S+)", text)
        if states:
            busy = [state for state in states if state in PENDING]
            worst = next((c for s, c in zip(states, codes, strict=False) if s != "COMPLETED"), "0:0")
            other = [state for state in states if state != "COMPLETED"]
            return (busy or other or states)[0], worst
    except ConfigError:
        pass  # a job that ended minutes ago is in the accounting only
    try:
        rows = ask("sacct", "-n", "-P", "-X", "-j", number, "-o", "State,ExitCode").split("\n")
    except ConfigError:
        return "UNKNOWN", ""
    state, _, code = rows[-2 if rows[-1:] == [""] and len(rows) > 1 else -1].partition("|")
    return (state.split()[0] if state.strip() else "UNKNOWN"), code


def wait_for(number: str) -> int:
    """Until the job has ended for good, through requeues; 0 where it completed, else its exit code (1: killed)."""
    while (found := job_state(number))[0] in PENDING:
        time.sleep(_POLL)
    state, code = found
    if state == "COMPLETED":
        return 0
    first = code.partition(":")[0]
    return int(first) if first.isdigit() and int(first) else 1


def status(run_folder: Path) -> str:
    """State of the job and of the run, and where to read on."""
    from .runs import find_runs, table

    note = read_note(run_folder)
    state, code = job_state(note["job"])
    lines = [f"job {note['job']}: {state.lower()}" + (f" (exit code {code})" if state not in PENDING else "")]
    return "\n".join([*lines, f"log: {_log(note)}", table(find_runs(run_folder))])


def log_text(run_folder: Path, lines: int) -> str:
    """The last lines of the job's log. raises: ForgepressError while there is none."""
    note = read_note(run_folder)
    path = Path(_log(note))
    found = sorted(path.parent.glob(path.name.replace("%a", "*")))
    if not found:
        raise ForgepressError(
            f"{path} is not there yet: job {note['job']} is {job_state(note['job'])[0].lower()}"
        )
    texts = [file.read_text(errors="replace").splitlines()[-lines:] for file in found]
    heads = [[f"── {file.name}"] if len(found) > 1 else [] for file in found]
    return "\n".join(line for head, text in zip(heads, texts, strict=True) for line in (*head, *text))


def cancel(run_folder: Path, *, save: bool = False) -> str:
    """Ends the job; with `save` its ranks save first, and it is requeued as after any save on request."""
    number = read_note(run_folder)["job"]
    ask("scancel", *(["--signal=USR1"] if save else []), number)
    return f"job {number} is asked to save" if save else f"job {number} is cancelled"


def ask(program: str, *words: str) -> str:
    """Runs one of SLURM's programs and gives what it printed. raises: ConfigError with what it complained of."""
    if not shutil.which(program):
        raise ConfigError(
            f"{program} is not here: this is no login node of a SLURM cluster (forgepress doctor)"
        )
    try:
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{program} has not answered for 120 s; see that slurmctld is up") from error
    if done.returncode:
        trouble = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ConfigError(f"{program} refuses: {trouble}")
    return done.stdout


def own_python() -> str:
    """The interpreter that the job starts: this one."""
    return sys.executable


def _log(note: dict[str, Any]) -> str:
    return note["log"].replace("%j", note["job"]).replace("%A", note["job"])


def _mesh(config: Any) -> str:
    return (
        " × ".join(f"{axis} {degree}" for axis, degree in config.parallel.degrees.items() if degree > 1)
        or "1"
    )
