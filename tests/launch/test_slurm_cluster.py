"""Against a real cluster (two nodes; partitions `main`, `urgent`): requeued, preempted, killed, and the same weights.

Skipped where no SLURM answers, or where nobody has said that it may be used: FORGEPRESS_TEST_SLURM=1; the trials of
minutes want FORGEPRESS_TEST_SLURM=long.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from forgepress.errors import ConfigError
from forgepress.launch.slurm import ask, job_state
from forgepress.tests.launch.cluster import (
    TWO_NODES,
    cancel_all,
    ended,
    forgepress,
    submit,
    training,
    trouble,
    until,
    weights,
)
from forgepress.trainer.history import starts

pytestmark = pytest.mark.skipif(bool(trouble()), reason=trouble() or "a cluster is there")
LONG = pytest.mark.skipif(bool(trouble("long")), reason=trouble("long") or "a cluster is there")

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

FOR_EVER = "phases=[{steps: 10000000, techniques: [{name: pruning.network_surgery, sparsity: 0.9}]}]"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "digits.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    cancel_all(tmp_path)


def test_stopped_preempted_and_without_a_node_a_job_goes_on_and_ends_as_one_process_run_unbroken(
    folder: Path,
):
    assert forgepress("train", "digits.yaml", "name=local", "export=[packed]").returncode == 0
    job = submit("cluster", "export=[packed]")
    until(training("cluster", 1))
    ask("scancel", "--signal=USR1", job)
    until(training("cluster", 2))
    urgent = ["-p", "urgent", "-N2", "--exclusive", "--parsable", "-o", "/dev/null", "--wrap", "true"]
    ask("sbatch", *urgent)
    until(training("cluster", 3))
    ask("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    until(lambda: job_state(job)[0] != "RUNNING")
    with suppress(ConfigError):  # it may have come back by itself
        ask("scontrol", "update", "NodeName=node2", "State=RESUME")
    assert ended(job) == 0
    sessions = starts(folder / "runs" / "cluster")
    assert len(sessions) == 4 and sessions[0]["hosts"] == ["node1", "node2"]
    assert [start["end"]["state"] for start in sessions if start["end"]][-1] == "finished"
    assert sessions[0]["end"]["state"] == "preempted" and sessions[1]["step"] == sessions[0]["end"]["step"]
    assert weights("cluster") == weights("local")


@LONG
def test_a_wrong_config_and_a_cancelled_job_are_not_requeued_and_the_cap_holds(folder: Path):
    wrong = submit("wrong", "data.source={idx: nowhere}")
    capped = submit("capped", FOR_EVER, "--max-restarts", "0")
    cancelled = submit("cancelled", FOR_EVER)
    assert ended(wrong) == 2 and "Restarts=0" in ask("scontrol", "show", "job", wrong)
    until(training("capped", 1))
    assert "running" in forgepress("slurm", "status", "capped").stdout
    second = forgepress("slurm", "digits.yaml", "name=capped", FOR_EVER, *TWO_NODES)
    assert second.returncode == 2 and f"its job {capped} is running" in second.stderr
    ask("scancel", "--signal=USR1", capped)
    assert ended(capped) == 75
    assert "not requeued" in forgepress("slurm", "logs", "capped").stdout
    until(training("cancelled", 1))
    assert forgepress("slurm", "cancel", "cancelled").returncode == 0
    until(lambda: job_state(cancelled)[0] == "CANCELLED")
    assert "Restarts=0" in ask("scontrol", "show", "job", cancelled)


@LONG
def test_an_array_of_six_points_two_at_a_time_goes_on_after_a_kill_and_runs_each_point_once(folder: Path):
    words = [
        "sweep",
        "digits.yaml",
        "parallel.replicate=1",
        "phases=[{name: dense, steps: 60}]",
        "export=[packed]",
        "--ranks",
        "2",
    ]
    words += ["optimizer.lr=1e-2,3e-3,1e-3", "seed=0,1", "--name", "sweep", "--slurm", "--time 20"]
    sweep = folder / "runs" / "sweep"

    def finished() -> list[Path]:
        return sorted(sweep.glob("point-*/summary.json"))

    first = forgepress(*words)
    assert first.returncode == 0, first.stderr
    job = json.loads((sweep / "slurm" / "job.json").read_text())["job"]
    until(lambda: len(finished()) >= 2)
    assert len(list(sweep.glob("point-*"))) <= 4  # two at a time: not all six have begun
    assert "its job" in forgepress(*words).stderr
    assert forgepress("slurm", "cancel", str(sweep)).returncode == 0
    until(lambda: job_state(job)[0] not in ("RUNNING", "PENDING", "COMPLETING"))
    before = {path: path.stat().st_mtime_ns for path in finished()}
    again = forgepress(*words)
    assert again.returncode == 0, again.stderr
    until(lambda: len(finished()) == 6)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())  # not run again

    def finishes() -> list[int]:
        states = [
            [start["end"]["state"] for start in starts(path.parent) if start["end"]] for path in finished()
        ]
        return [each.count("finished") for each in states]

    until(lambda: 0 not in finishes())  # the end is noted after the summary
    assert finishes() == [1] * 6
    until(lambda: "its job" not in (shown := forgepress(*words)).stderr and "results.csv" in shown.stdout)
    assert (sweep / "pareto.svg").read_text().startswith("<svg")
    assert len((sweep / "results.csv").read_text().splitlines()) == 7
