"""Ctrl-C, SIGTERM, SIGUSR1 and the death of the launcher itself. The launcher is a process of its own here."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Launch = Callable[..., subprocess.Popen[str]]
Wait = Callable[..., None]


def _alive(process: int) -> bool:
    """Does it run? A process that has ended but was not collected yet (a zombie) does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _ready(folder: Path, ranks: int) -> list[int]:
    files = [folder / f"ready-{rank}" for rank in range(ranks)]
    texts = [file.read_text() if file.exists() else "" for file in files]
    return [int(number) for text in texts for number in text.split()] if all(texts) else []


def test_one_ctrl_c_lets_the_ranks_save_and_ends_with_75(launcher: Launch, wait_until: Wait, tmp_path: Path):
    process = launcher("save_when_asked", [str(tmp_path)], ranks=2)
    wait_until(lambda: _ready(tmp_path, 2))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert [json.loads((tmp_path / f"saved-{rank}").read_text()) for rank in (0, 1)] == [[signal.SIGTERM]] * 2
    assert "press Ctrl-C again" in output
    assert output.count("stopped on request; saved at step") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_reaches_every_rank(
    launcher: Launch, wait_until: Wait, tmp_path: Path, number: signal.Signals
):
    process = launcher("save_when_asked", [str(tmp_path)], ranks=3)
    wait_until(lambda: _ready(tmp_path, 3))
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert [json.loads((tmp_path / f"saved-{rank}").read_text()) for rank in range(3)] == [[number]] * 3


def test_a_second_ctrl_c_kills_the_ranks_and_their_helpers(
    launcher: Launch, wait_until: Wait, tmp_path: Path
):
    process = launcher("never_stop", [str(tmp_path)], ranks=2)
    wait_until(lambda: _ready(tmp_path, 2))
    left = _ready(tmp_path, 2)
    assert len(left) == 4 and all(map(_alive, left))
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while "press Ctrl-C again" not in process.stdout.readline():
        assert process.poll() is None
    assert all(map(_alive, left))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert not any(map(_alive, left))


def test_ranks_that_cannot_save_yet_end_at_the_first_ctrl_c(
    launcher: Launch, wait_until: Wait, tmp_path: Path
):
    process = launcher("train_for_ever", [], ranks=2)
    wait_until(lambda: all((tmp_path / "logs" / f"rank-{n}.log").exists() for n in (0, 1)))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped before a checkpoint could be saved" in output


def test_kill_9_of_the_launcher_leaves_no_rank(launcher: Launch, wait_until: Wait, tmp_path: Path):
    process = launcher("save_when_asked", [str(tmp_path)], ranks=2)
    wait_until(lambda: _ready(tmp_path, 2))
    ranks = _ready(tmp_path, 2)
    os.kill(ranks[1], signal.SIGSTOP)  # also a rank that cannot notice anything by itself
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(_alive, ranks)), seconds=5)
    assert not any(map(_alive, ranks))


def test_a_failure_leaves_no_helper_of_a_rank(launcher: Launch, wait_until: Wait, tmp_path: Path):
    process = launcher("never_stop", [str(tmp_path)], ranks=2)
    wait_until(lambda: _ready(tmp_path, 2))
    left = _ready(tmp_path, 2)
    os.kill(left[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1 and "rank 0 of 2" in output and "killed by SIGKILL" in output
    assert not any(map(_alive, left))
