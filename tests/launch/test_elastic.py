"""The real torchrun with agents that may come and go: one is lost, and the run goes on with the ranks that are left."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from forgepress.trainer.history import starts

CONFIG = """
model: lenet_300_100
data: {source: digits, batch: 700}
parallel: {replicate: auto, timeout: 30}
phases: [{name: train, steps: 400, techniques: [{name: pruning.network_surgery, sparsity: 0.8}]}]
checkpoint: {every: 20, keep_best: false}
"""
QUICK = "last_call_timeout=6,keep_alive_interval=1,keep_alive_max_attempt=8"


@pytest.fixture
def agents(tmp_path: Path) -> "Iterator[list[subprocess.Popen[str]]]":
    """Two torchruns with one rank each that meet on this machine, the store at the first; ended with the test."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--local-addr", "127.0.0.1"]
    options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf"]
    train = ["-m", "forgepress.launch", "train", "run.yaml"]
    started: list[subprocess.Popen[str]] = []
    for number in (0, 1):
        conf = f"{QUICK},is_host={1 - number}"
        command = [sys.executable, "-m", "torch.distributed.run", *options, conf, *train]
        with (tmp_path / f"agent-{number}").open("w") as output:
            started.append(
                subprocess.Popen(
                    command, cwd=tmp_path, stdout=output, stderr=output, text=True, start_new_session=True
                )
            )
    yield started
    for process in started:
        for one in _below(process.pid):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.wait()


def test_with_one_agent_lost_the_run_goes_on_from_its_checkpoint_with_fewer_ranks(
    agents: "list[subprocess.Popen[str]]", tmp_path: Path
):
    folder, (stays, goes) = tmp_path / "runs" / "run", agents
    end = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*/state.json")):
        assert time.monotonic() < end and stays.poll() is None, (tmp_path / "agent-0").read_text()
        time.sleep(0.05)
    assert starts(folder)[-1]["mesh"]["replicate"] == 2
    for process in _below(goes.pid):
        os.kill(process, signal.SIGKILL)
    assert stays.wait(120) == 0, (tmp_path / "agent-0").read_text()
    last = starts(folder)[-1]
    assert last["mesh"]["replicate"] == 1 and last["step"] >= 20 and last["end"]["state"] == "finished"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 400 and summary["techniques"][0]["achieved"]["sparsity"] >= 0.8


def _below(agent: int) -> list[int]:
    """The agent and its ranks: a host that is lost."""
    found = [agent]
    for process in found:
        tasks = Path(f"/proc/{process}/task").glob("*/children")
        found += [int(child) for task in tasks for child in task.read_text().split()]
    return found
