"""What the tests against a real SLURM cluster share: whether there is one, and how jobs are started and waited for."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from forgepress.launch.slurm import PENDING, job_state, wait_for
from forgepress.trainer.history import starts

TWO_NODES = ("--nodes", "2", "--ranks-per-node", "1", "--time", "20")


def trouble(wanted: str = "1") -> str:
    """Why there is no cluster for these tests; "" where there is. wanted: "long" for trials of minutes."""
    given = os.environ.get("FORGEPRESS_TEST_SLURM", "")
    if given not in (wanted, "long"):
        return f"FORGEPRESS_TEST_SLURM={wanted} is not set: no cluster is meant for these tests"
    if not shutil.which("sbatch") or subprocess.run(["sinfo", "-h"], capture_output=True).returncode:
        return "no SLURM cluster answers"
    return ""


def cancel_all(folder: Path) -> None:
    """Ends the jobs of the runs in `folder` and waits until the nodes are free."""
    for note in folder.glob("runs/*/slurm/job.json"):
        subprocess.run(["scancel", json.loads(note.read_text())["job"]], capture_output=True)
    until(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout.strip())


def forgepress(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forgepress.launch", *words], capture_output=True, text=True, timeout=300
    )


def submit(name: str, *words: str) -> str:
    done = forgepress("slurm", "digits.yaml", f"name={name}", *TWO_NODES, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(Path("runs", name, "slurm", "job.json").read_text())["job"]


def ended(job: str, seconds: float = 300.0) -> int:
    """The job's exit code, once it has ended for good; as `--wait`, but not for ever."""
    until(lambda: job_state(job)[0] not in PENDING, seconds)
    return wait_for(job)


def until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what the test waits for has not happened"
        time.sleep(0.2)


def training(name: str, session: int) -> Callable[[], bool]:
    """The run's `session`-th start has gone beyond where it began, in its surgery phase."""

    def look() -> bool:
        folder = Path("runs", name)
        begun = starts(folder)
        if len(begun) < session or not (folder / "metrics.jsonl").exists():
            return False
        steps = [
            json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()[-1:]
        ]
        return bool(steps) and steps[0] > max(begun[session - 1]["step"], 60)

    return look


def weights(name: str) -> bytes:
    return Path("runs", name, "artifacts", "packed", "model.safetensors").read_bytes()
