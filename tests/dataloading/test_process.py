"""The loader process gives the same batches, ends with the run however it ends, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice

import psutil
import pytest
import torch
from forgepress.dataloading import ArraySource, Augment, Loader
from forgepress.errors import DataError

ROWS = 300
SETTINGS = {"batch": 32, "seed": 4, "augment": Augment(crop=1, flip=True)}


def source() -> ArraySource:
    pixels = torch.arange(ROWS * 48, dtype=torch.float32)
    return ArraySource({"inputs": pixels.reshape(ROWS, 3, 4, 4), "targets": torch.arange(ROWS)})


def test_a_process_gives_the_same_batches_and_a_killed_one_is_an_error_and_can_be_replaced():
    loader = Loader(source(), mode="process", **SETTINGS)
    with Loader(source(), prefetch=0, **SETTINGS) as plain:
        kept = []
        for ours, theirs in islice(zip(loader.stream(), plain.stream(), strict=False), 30):
            assert all(torch.equal(ours.columns[name], theirs.columns[name]) for name in theirs.columns)
            assert torch.equal(ours.rows, theirs.rows)
            assert loader.state_dict() == plain.state_dict()
            kept.append((ours.columns["inputs"], theirs.columns["inputs"]))
        assert all(torch.equal(*pair) for pair in kept)  # more than there are slots: none was written again
        assert loader.report().mode == "process"
        os.kill(loader._ahead.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="has ended with signal 9"):
            list(islice(loader.stream(), 50))
        resumed = next(loader.stream())
        plain.load_state_dict({**loader.state_dict(), "consumed": 0, "index": 0, "epoch": resumed.epoch})
        rows = [batch.rows for batch in islice(plain.stream(), resumed.index + 1)]
        assert torch.equal(resumed.rows, rows[-1])
    child = psutil.Process(loader._ahead.pid)
    loader.close()
    assert not child.is_running()


SCRIPT = """
import torch, sys
from forgepress.dataloading import ArraySource, Loader

def slow(columns, draws):
    return {**columns, "drawn": draws.uniform()}

loader = Loader(ArraySource({"a": torch.arange(4000)}), batch=4, mode="process", transform=slow)
next(loader.stream())
print(loader._ahead.pid, flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_when_the_run_is_killed():
    run = subprocess.Popen(
        [sys.executable, "-P", "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = psutil.Process(int(run.stdout.readline()))
    maps = [one.path for one in child.memory_maps()]
    assert any(
        "memfd:forgepress-loader" in path for path in maps
    )  # the only memory that both share: without a name,
    assert not any(path.startswith("/dev/shm") for path in maps)  # it is gone when both are
    run.kill()
    run.wait()
    until = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    run.stdin.close()
    run.stdout.close()


def test_what_cannot_go_to_a_process_is_said():
    class Here(ArraySource):
        def __reduce__(self):
            raise TypeError("stays here")

    data = Here({"a": torch.arange(40)})
    with pytest.raises(DataError, match=r"cannot go to another process .*stays here.*use mode=thread"):
        next(Loader(data, batch=4, mode="process").stream())
