"""Trials of minutes against a real cluster: the examples on two nodes, the time limit, a node that is lost, torchrun.

Skipped unless FORGEPRESS_TEST_SLURM=long; needs the data of the examples in FORGEPRESS_DATA.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forgepress.launch.slurm import ask, job_state
from forgepress.tests.launch.cluster import cancel_all, ended, forgepress, training, trouble, until, weights
from forgepress.trainer.history import starts

pytestmark = pytest.mark.skipif(bool(trouble("long")), reason=trouble("long") or "a cluster is there")

ROOT = Path(__file__).resolve().parents[2]
DATA = os.environ.get("FORGEPRESS_DATA", str(ROOT.parent / "shared" / "data"))
NODES = ("--nodes", "2", "--ranks-per-node", "1", "--time", "20")
CONFIG = """
model: lenet_300_100
data: {source: digits, batch: 128, transform: {flatten: true}}
parallel: {replicate: 2, timeout: 120}
optimizer: {name: adam, lr: 2.0e-3}
phases:
  - {name: dense, steps: 20}
  - {name: surgery, steps: STEPS, techniques: [{name: pruning.network_surgery, sparsity: 0.9}]}
checkpoint: {every: 200, keep_best: false}
export: [packed]
"""
NAP = '''
"""A technique that makes steps last."""
import os
import time
from dataclasses import dataclass

from forgepress.compression import Technique

@dataclass(frozen=True, kw_only=True)
class Nap(Technique):
    """Sleeps after every step."""

    def after_step(self, run):
        time.sleep(float(os.environ.get("NAP", "0")))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "digits.yaml").write_text(CONFIG.replace("STEPS", "3000"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGEPRESS_DATA", DATA)
    yield tmp_path
    cancel_all(tmp_path)


def _few(folder: Path) -> Path:
    """A folder like FORGEPRESS_DATA with the beginning of what the examples read: evaluating all takes too long."""
    rows = {"train": 4000, "t10k": 500}
    text = (Path(DATA) / "tiny-shakespeare" / "input.txt").read_text()
    (folder / "tiny-shakespeare").mkdir(parents=True)
    (folder / "tiny-shakespeare" / "input.txt").write_text(text[:100_000])
    (folder / "mnist").mkdir()
    for part, count in rows.items():
        for kind, header, size in (("images-idx3", 16, 28 * 28), ("labels-idx1", 8, 1)):
            name = f"{part}-{kind}-ubyte"
            whole = gzip.decompress((Path(DATA) / "mnist" / f"{name}.gz").read_bytes())
            begin = whole[:4] + count.to_bytes(4, "big") + whole[8:header]
            (folder / "mnist" / name).write_bytes(begin + whole[header : header + count * size])
    return folder


def _losses(name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


@pytest.mark.parametrize("mesh", ["shard=2", "tensor=2", "pipeline=2"])
@pytest.mark.parametrize(("example", "steps"), [("mnist_lenet300", 30), ("gpt_shakespeare", 6)])
def test_an_example_on_two_nodes_has_the_losses_of_the_local_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, example: str, steps: int, mesh: str
):
    monkeypatch.setenv("FORGEPRESS_DATA", str(_few(folder / "data")))
    words = [str(ROOT / "examples" / f"{example}.yaml"), "tracking.every=1", f"parallel.{mesh}", "export=[]"]
    words += ["evaluate.batch=500"]  # fewer messages
    words += ["parallel.microbatches=2"] if mesh.startswith("pipeline") else []
    technique = "{name: pruning.magnitude, sparsity: 0.5}"
    phases = f"phases=[{{name: prune, steps: {steps}, techniques: [{technique}]}}]"
    assert forgepress("train", *words, phases, "name=local", "--ranks", "2").returncode == 0
    done = forgepress("slurm", *words, phases, "name=cluster", *NODES)
    assert done.returncode == 0, done.stderr
    assert ended(json.loads(Path("runs/cluster/slurm/job.json").read_text())["job"]) == 0
    assert starts(Path("runs/cluster"))[0]["hosts"] == ["node1", "node2"]
    assert len(_losses("cluster")) == steps and _losses("cluster") == _losses("local")


def test_before_the_time_limit_a_job_saves_is_requeued_and_ends_as_if_there_were_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """SLURM looks at limits every half minute: with 75 seconds of notice the signal comes at the latest after 75."""
    (folder / "nap.py").write_text(NAP)
    surgery = "{name: pruning.network_surgery, sparsity: 0.9}, {name: 'nap:Nap'}"
    words = ("digits.yaml", f"phases=[{{name: surgery, steps: 1500, techniques: [{surgery}]}}]")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert forgepress("train", *words, "name=local", "--ranks", "2").returncode == 0
    monkeypatch.setenv("NAP", "0.06")  # the run outlasts the limit on every machine
    asked = ("--time", "2", "--signal-seconds", "75", "--nodes", "2", "--ranks-per-node", "1")
    done = forgepress("slurm", *words, "name=limited", *asked)
    assert done.returncode == 0, done.stderr
    job = json.loads(Path("runs/limited/slurm/job.json").read_text())["job"]
    assert ended(job, 900) == 0
    sessions = starts(Path("runs/limited"))
    assert len(sessions) > 1 and sessions[0]["end"]["state"] == "preempted"
    assert (
        sessions[1]["step"] == sessions[0]["end"]["step"] > 0 and sessions[-1]["end"]["state"] == "finished"
    )
    assert "ended with 75; the job is requeued" in Path(f"runs/limited/slurm/{job}.log").read_text()
    assert weights("limited") == weights("local")


def test_a_node_whose_plug_is_pulled_requeues_the_job_and_the_weights_are_the_same(folder: Path):
    tool = os.environ.get("FORGEPRESS_SLURM_CLUSTER", str(ROOT.parent / "shared/tools/slurm-cluster"))
    if not shutil.which(tool) or "SLURM_CONF" not in os.environ:
        pytest.skip("FORGEPRESS_SLURM_CLUSTER names no slurm-cluster, which alone can pull a plug")
    assert forgepress("train", "digits.yaml", "name=local", "--ranks", "2").returncode == 0
    assert forgepress("slurm", "digits.yaml", "name=lost", *NODES).returncode == 0
    job = json.loads(Path("runs/lost/slurm/job.json").read_text())["job"]
    until(training("lost", 1))
    subprocess.run([tool, "kill-node", "node2"], check=True)
    ask("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    until(lambda: job_state(job)[0] == "PENDING")
    subprocess.run([tool, "start-node", "node2"], check=True)
    assert ended(job) == 0 and len(starts(Path("runs/lost"))) == 2
    assert weights("lost") == weights("local")


def test_under_torchrun_on_two_hosts_a_killed_worker_starts_all_again_from_the_checkpoint(folder: Path):
    run = "-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --max-restarts 2 --rdzv-backend c10d"
    meet = '--rdzv-endpoint "$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)":29400 --rdzv-id $SLURM_JOB_ID'
    train = "-m forgepress.launch train digits.yaml name=elastic"
    script = f"srun bash -c 'exec env --unset=SLURM_STEP_NUM_TASKS {sys.executable} {run} {meet} {train}'"
    (folder / "job.sh").write_text(f"#!/bin/bash\n{script}\n")
    (folder / "runs/elastic/slurm").mkdir(parents=True)
    job = ask("sbatch", "--parsable", "-N2", "--ntasks-per-node=1", "-o", "job.log", "job.sh").strip()
    Path("runs/elastic/slurm/job.json").write_text(json.dumps({"job": job, "log": "job.log"}))
    saved = Path("runs/elastic/checkpoints")
    until(lambda: any(int(step.name.split("-")[1]) >= 200 for step in saved.glob("step-*[0-9]")))
    kill = "pkill -KILL -f 'forgepress.launch train digits.yaml name=elasti[c]' -n"
    ask("srun", f"--jobid={job}", "--overlap", "-N1", "-n1", "-w", "node2", "bash", "-c", kill)
    assert ended(job) == 0, Path("job.log").read_text()
    sessions = starts(Path("runs/elastic"))
    assert len(sessions) == 2 and sessions[1]["step"] >= 200 and sessions[0]["hosts"] == ["node1", "node2"]
    assert forgepress("train", "digits.yaml", "name=local", "--ranks", "2").returncode == 0
    assert weights("elastic") == weights("local")
