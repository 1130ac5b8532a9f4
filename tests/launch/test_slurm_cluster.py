"""Against a real cluster (two nodes; partitions `main`, `urgent`): requeued, preempted, killed, and the same weights.

Skipped where no SLURM answers, or where nobody has said that it may be used: FORGEPRESS_TEST_SLURM=1.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forgepress.launch.slurm import ask, job_state, wait_for
from forgepress.trainer.history import starts


def _trouble() -> str:
    if os.environ.get("FORGEPRESS_TEST_SLURM") != "1":
        return "FORGEPRESS_TEST_SLURM=1 is not set: no cluster is meant for tests"
    if not shutil.which("sbatch") or subprocess.run(["sinfo", "-h"], capture_output=True).returncode:
        return "no SLURM cluster answers"
    return ""


pytestmark = pytest.mark.skipif(bool(_trouble()), reason=_trouble() or "a cluster is there")

CONFIG = """
model: lenet_300_100
data: {source: digits, batch: 128, transform: {flatten: true}}
parallel: {replicate: 2, timeout: 120}
optimizer: {name: adam, lr: 2.0e-3}
phases:
  - {name: dense, steps: 20}
  - {name: surgery, steps: 1500, techniques: [{name: pruning.network_surgery, sparsity: 0.9}]}
checkpoint: {every: 200, keep_best: false}
"""
TWO_NODES = ("--nodes", "2", "--ranks-per-node", "1", "--time", "20")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "digits.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for note in tmp_path.glob("runs/*/slurm/job.json"):
        subprocess.run(["scancel", json.loads(note.read_text())["job"]], capture_output=True)
    _until(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout.strip())


def _forgepress(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forgepress.launch", *words], capture_output=True, text=True, timeout=300
    )


def _submit(name: str, *words: str) -> str:
    done = _forgepress("slurm", "digits.yaml", f"name={name}", *TWO_NODES, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(Path("runs", name, "slurm", "job.json").read_text())["job"]


def _until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what the test waits for has not happened"
        time.sleep(0.2)


def _training(name: str, session: int) -> Callable[[], bool]:
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


def _weights(name: str) -> bytes:
    return Path("runs", name, "artifacts", "packed", "model.safetensors").read_bytes()


def test_stopped_preempted_and_without_a_node_a_job_goes_on_and_ends_as_one_process_run_unbroken(
    folder: Path,
):
    assert _forgepress("train", "digits.yaml", "name=local", "export=[packed]").returncode == 0
    job = _submit("cluster", "export=[packed]")
    _until(_training("cluster", 1))
    ask("scancel", "--signal=USR1", job)
    _until(_training("cluster", 2))
    urgent = ["-p", "urgent", "-N2", "--exclusive", "--parsable", "-o", "/dev/null", "--wrap", "true"]
    ask("sbatch", *urgent)
    _until(_training("cluster", 3))
    ask("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    _until(lambda: job_state(job)[0] != "RUNNING")
    ask("scontrol", "update", "NodeName=node2", "State=RESUME")
    assert wait_for(job) == 0
    sessions = starts(folder / "runs" / "cluster")
    assert len(sessions) == 4 and sessions[0]["hosts"] == ["node1", "node2"]
    assert [start["end"]["state"] for start in sessions if start["end"]][-1] == "finished"
    assert sessions[0]["end"]["state"] == "preempted" and sessions[1]["step"] == sessions[0]["end"]["step"]
    assert _weights("cluster") == _weights("local")


def test_a_wrong_config_and_a_cancelled_job_are_not_requeued_and_the_cap_holds(folder: Path):
    wrong = _submit("wrong", "data.source={idx: nowhere}")
    assert wait_for(wrong) == 2 and "Restarts=0" in ask("scontrol", "show", "job", wrong)
    capped = _submit("capped", "--max-restarts", "0")
    _until(_training("capped", 1))
    assert "running" in _forgepress("slurm", "status", "capped").stdout
    second = _forgepress("slurm", "digits.yaml", "name=capped", *TWO_NODES)
    assert second.returncode == 2 and f"its job {capped} is running" in second.stderr
    ask("scancel", "--signal=USR1", capped)
    assert wait_for(capped) == 75
    assert "not requeued" in _forgepress("slurm", "logs", "capped").stdout
    cancelled = _submit("cancelled")
    _until(_training("cancelled", 1))
    assert _forgepress("slurm", "cancel", "cancelled").returncode == 0
    _until(lambda: job_state(cancelled)[0] == "CANCELLED")
    assert "Restarts=0" in ask("scontrol", "show", "job", cancelled)
