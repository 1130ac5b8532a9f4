"""Whole trainings through the real command line on two ranks: killed, stopped, signalled, gone on with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forgepress.errors import ForgepressError
from forgepress.launch.collisions import refuse_running
from safetensors.torch import load_file

CONFIG = """
name: run
model: lenet_300_100
data: {source: digits, batch: 700}  # a few milliseconds a step: time for signals, without many steps
parallel: {shard: 2, timeout: 20}
optimizer: {name: adam, lr: 0.002}
phases: [{name: train, steps: STEPS, techniques: [{name: pruning.network_surgery, sparsity: 0.8}]}]
checkpoint: {every: 20, keep_best: false}
tracking: {every: 5}
export: [safetensors]
"""
FOR_EVER = 10_000_000
METRIC = '''
"""A metric that fails on one rank."""
import os

def broken(outputs, columns):
    if os.environ.get("RANK") == "1":
        raise ValueError("rank 1 cannot count")
    return outputs[:, 0]
'''
STUCK = '''
"""A metric that never answers on one rank, from its third batch on."""
import os
import time

calls = []

def stuck(outputs, columns):
    calls.append(1)
    if os.environ.get("RANK") == "1" and len(calls) == 3:
        time.sleep(600)
    return outputs[:, 0]
'''
LONELY = '''
"""A technique whose rank 1 enters a collective that nobody else enters."""
from dataclasses import dataclass

import torch.distributed as dist
from forgepress.compression import Technique

@dataclass(frozen=True, kw_only=True)
class Lonely(Technique):
    """Waits for ever in its third step."""

    def after_step(self, run):
        if run.step == 3 and dist.get_rank() == 1:
            dist.barrier()
'''
ZERO_3 = ("parallel.engine=deepspeed", "parallel.deepspeed.stage=3")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start("run", steps=…, "key=value", …): `forgepress train` on two ranks in tmp_path, ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *words: str, steps: int = FOR_EVER) -> subprocess.Popen[str]:
        (tmp_path / "run.yaml").write_text(CONFIG.replace("STEPS", str(steps)))
        command = [sys.executable, "-m", "forgepress.launch", "train", "run.yaml", f"name={name}", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
        started.append(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ranks_of(folder: Path) -> list[int]:
    """Process ids of the ranks, from the headings of their logs."""
    logs = [folder / "logs" / f"rank-{rank}.log" for rank in (0, 1)]
    texts = [log.read_text() if log.exists() else "" for log in logs]
    return [
        int(found[-1]) for text in texts if (found := re.findall(r"rank \d of 2 on .*, process (\d+)", text))
    ]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    end = time.monotonic() + 60
    while not list(folder.glob("checkpoints/step-*/state.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "artifacts" / "safetensors" / "model.safetensors")


@pytest.mark.parametrize(
    ("number", "cause", "engine"),
    [
        (signal.SIGKILL, "killed by SIGKILL", ()),
        (signal.SIGSTOP, "no sign of life", ()),
        (signal.SIGKILL, "killed by SIGKILL", ZERO_3),
    ],
    ids=["killed", "stopped", "killed, ZeRO-3"],
)
def test_a_rank_that_dies_or_stops_in_training_ends_all(
    start: Start, tmp_path: Path, number: signal.Signals, cause: str, engine: tuple[str, ...]
) -> None:
    folder = tmp_path / "runs" / "run"
    process = start("run", *engine)
    wait_for_checkpoint(process, folder)
    ranks = ranks_of(folder)
    assert len(ranks) == 2 and all(map(alive, ranks))
    os.kill(ranks[1], number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.count("error:") == 1 and "Traceback" not in output
    assert re.search(r"error: rank 1 of 2 \(host .*\) failed(,| at).* step \d+, .*" + cause, output), output
    assert not any(map(alive, ranks))


def test_an_exception_on_one_rank_ends_all_and_is_named(start: Start, tmp_path: Path) -> None:
    (tmp_path / "broken_metric.py").write_text(METRIC)
    process = start("run", "evaluate.metrics=['broken_metric:broken']", "evaluate.every=20")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.count("error:") == 1
    assert re.search(r"error: rank 1 of 2 .* step 20, evaluate: ValueError: rank 1 cannot count", output), (
        output
    )
    assert not any(map(alive, ranks_of(tmp_path / "runs" / "run")))


def test_a_rank_that_is_stuck_in_evaluation_ends_all_at_the_timeout(start: Start, tmp_path: Path) -> None:
    (tmp_path / "stuck_metric.py").write_text(STUCK)
    words = ("evaluate.metrics=['stuck_metric:stuck']", "evaluate.every=20", "evaluate.batch=20")
    process = start("run", *words, "parallel.timeout=3")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.count("error:") == 1 and "parallel.timeout=3" in output, output
    assert re.search(r"error: rank 1 of 2 .* step 20, evaluate: no progress", output), output
    assert not any(map(alive, ranks_of(tmp_path / "runs" / "run")))


def test_a_collective_in_training_that_one_rank_enters_alone_ends_all_at_the_timeout(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "lonely.py").write_text(LONELY)
    technique = "phases=[{name: train, steps: 1000, techniques: [{name: 'lonely:Lonely'}]}]"
    process = start("run", technique, "parallel.timeout=2")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.count("error:") == 1 and "parallel.timeout=2" in output, output
    assert re.search(r"rank [01] of 2 .* step [34], .*no progress", output) and re.search(
        r"rank [01]: step [34], ", output
    ), output
    assert not any(map(alive, ranks_of(tmp_path / "runs" / "run")))


def test_stopped_twice_and_gone_on_with_the_run_ends_with_the_same_bits(start: Start, tmp_path: Path) -> None:
    steps, folder = 120, tmp_path / "runs" / "stopped"
    for number in (signal.SIGTERM, signal.SIGINT):
        seen = set(folder.glob("checkpoints/step-*"))
        process = start("stopped", steps=steps)
        end = time.monotonic() + 60
        while set(folder.glob("checkpoints/step-*")) <= seen:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 75, output
        assert len(re.findall(r"step \d+ is saved in", output)) == 1
    for name in ("stopped", "unbroken"):
        process = start(name, steps=steps)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == steps and summary["techniques"][0]["achieved"]["sparsity"] >= 0.8
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line["step"] for line in lines if line["kind"] == "train"]
    assert trained == sorted(set(trained)) and trained[-1] == steps
    stopped, unbroken = weights_of(folder), weights_of(tmp_path / "runs" / "unbroken")
    assert stopped.keys() == unbroken.keys()
    assert all(torch.equal(stopped[name], unbroken[name]) for name in unbroken)


def test_two_runs_at_once_share_nothing_and_end_as_one_alone(start: Start, tmp_path: Path) -> None:
    """Ports, shared memory (a loader process of each, a cache of each) and folders; one name only one of them gets."""
    own = ("data.batch=300", "data.mode=process", "data.cache={memory: 4194304, shared: true}")
    before = set(os.listdir("/dev/shm"))
    both = [start(name, *own, steps=150) for name in ("one", "two")]
    wait_for_checkpoint(both[0], tmp_path / "runs" / "one")
    with pytest.raises(ForgepressError, match="runs/one"):
        refuse_running(tmp_path / "runs" / "one")
    for process in both:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert start("alone", *own, steps=150).wait(120) == 0
    one, two, alone = (weights_of(tmp_path / "runs" / name) for name in ("one", "two", "alone"))
    assert all(torch.equal(one[name], alone[name]) and torch.equal(two[name], alone[name]) for name in alone)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "forgepress" in name]
