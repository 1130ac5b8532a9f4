"""One rank fails, all end, one message names the cause."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forgepress.launch import Future, RankFailed, submit


def test_every_rank_runs_and_returns_its_own_value(start: Callable[..., Future]):
    assert start("who", ranks=3).results(30) == [[n, 3, n, 3, "forgepress"] for n in range(3)]


def test_every_rank_has_a_log_of_its_own(start: Callable[..., Future], tmp_path: Path):
    start("who", ranks=2).results(30)
    start("who", ranks=2).results(30)  # a resumed run goes on in the same log
    for rank in (0, 1):
        text = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        assert text.count(f"rank {rank} speaks\n") == text.count(f"rank {rank} warns\n") == 2
        assert f"rank {1 - rank} speaks" not in text
        assert text.startswith("── ") and f"rank {rank} of 2 on " in text


def test_rank_0_speaks_on_the_terminal_and_in_its_log_the_others_in_their_logs(
    launcher: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    output, _ = launcher("who", []).communicate(timeout=30)
    assert "rank 0 speaks" in output and "rank 0 warns" in output
    assert "rank 1" not in output
    assert "rank 0 speaks\n" in (tmp_path / "logs" / "rank-0.log").read_text()


def test_children_get_a_safe_path_and_their_share_of_threads(
    start: Callable[..., Future], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    seen = start("environment", ranks=2).results(30)
    assert all(one["PYTHONSAFEPATH"] == "1" and one["OMP_NUM_THREADS"] == "5" for one in seen)
    assert seen[0]["MASTER_PORT"] == seen[1]["MASTER_PORT"] != ""


def test_a_raise_on_one_rank_ends_all_and_names_rank_host_step_cause_and_the_others(
    start: Callable[..., Future], tmp_path: Path
):
    with pytest.raises(RankFailed) as caught:
        start("raise_on", 1, ranks=3).results(30)
    first, *rest = str(caught.value).splitlines()
    assert (
        first.startswith("rank 1 of 3 (host ")
        and "failed at step 2, backward: ValueError: rank 1 has had enough" in first
    )
    assert "workers.py:" in first and "in raise_on" in first
    assert any("rank 0" in line or "ranks 0" in line for line in rest)
    assert caught.value.exit_code == 1
    assert "and says why" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_a_users_error_gives_its_own_message_and_exit_code(start: Callable[..., Future], tmp_path: Path):
    with pytest.raises(RankFailed) as caught:
        start("user_error_on", 1, ranks=2).results(30)
    assert str(caught.value).splitlines()[0] == "the loss is not finite; lower optimizer.lr"
    assert "on rank 1 of 2" in str(caught.value)
    assert caught.value.exit_code == 1
    assert "Traceback" not in (tmp_path / "logs" / "rank-1.log").read_text()


def test_the_same_users_error_on_all_ranks_is_said_once(start: Callable[..., Future]):
    with pytest.raises(RankFailed) as caught:
        start("user_error_on", -1, ranks=3).results(30)
    assert str(caught.value) == "no such model"
    assert caught.value.exit_code == 2


def test_an_exit_without_a_word_gives_its_code(start: Callable[..., Future]):
    with pytest.raises(RankFailed, match=r"rank 0 of 2 .* exit code 7") as caught:
        start("exit_on", 0, 7).results(30)
    assert caught.value.exit_code == 7


def test_kill_9_is_named(start: Callable[..., Future]):
    outcome = start("kill_on", 1, 9, ranks=3).outcome(30)
    assert "rank 1 of 3" in outcome.message and "killed by SIGKILL" in outcome.message
    assert (outcome.exit_code, outcome.signals) == (1, (9,))


def test_a_lost_peer_does_not_hide_the_rank_that_died(start: Callable[..., Future]):
    outcome = start("lose_a_peer", 1, ranks=3).outcome(60)
    assert outcome.message.startswith("error: rank 1 of 3") and "killed by SIGKILL" in outcome.message


def test_a_function_that_is_not_there_is_a_config_error():
    with pytest.raises(RankFailed, match=r"want package\.module:function") as caught:
        submit("forgepress.nowhere:train", ranks=2).results(30)
    assert caught.value.exit_code == 2


def test_rank_0_keeps_the_terminal_so_that_progress_bars_are_drawn():
    ours, theirs = pty.openpty()
    code = (
        "import sys; from forgepress.launch.local import LocalRanks; "
        "sys.exit(LocalRanks([sys.executable, '-c', 'import sys; print(sys.stdout.isatty(), sys.stderr.isatty())'], 2)"
        ".run().exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=theirs, timeout=30)
    assert done.returncode == 0
    assert os.read(ours, 100).decode().split() == ["True", "True"]  # once: rank 1 has no terminal
