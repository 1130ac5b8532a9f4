"""Ranks that say nothing more: stopped, stuck, or waiting for one another."""

from collections.abc import Callable
from pathlib import Path

from forgepress.launch import Future


def test_a_stopped_process_is_found_by_its_silence(start: Callable[..., Future]):
    outcome = start("kill_on", 1, 19, silence=1.5).outcome(30)
    assert "rank 1 of 2" in outcome.message and "no sign of life" in outcome.message
    assert outcome.exit_code == 1


def test_a_rank_without_progress_is_named_with_the_place_where_it_is_stuck(
    start: Callable[..., Future], tmp_path: Path
):
    outcome = start("hang_on", 1, ranks=3, timeout=1.0).outcome(30)
    assert (
        outcome.message.startswith("error: rank 1 of 3")
        and "failed at step 2, data: no progress" in outcome.message
    )
    assert "  ranks 0, 2: step 3, backward" in outcome.message
    assert "in sleep_in_the_data_loader" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_a_long_step_that_was_announced_is_no_hang(start: Callable[..., Future]):
    assert start("slow_with_allowance", timeout=1.0).results(30) == ["done", "done"]


def test_a_collective_that_one_rank_enters_alone_ends_at_the_timeout(start: Callable[..., Future]):
    outcome = start("enter_alone", 1, 600, timeout=1.5).outcome(60)
    assert (
        outcome.message.startswith("error: rank 0 of 2")
        and "failed at step 1, data: no progress" in outcome.message
    )
    assert "  rank 1: step 2, all-reduce" in outcome.message


def test_when_the_collective_gives_up_first_the_rank_that_never_came_is_named(start: Callable[..., Future]):
    outcome = start("enter_alone", 1, 1, timeout=30.0).outcome(60)
    assert outcome.message.startswith("error: rank 0 of 2") and "gave up waiting for it" in outcome.message
    assert "  rank 1: step 2, all-reduce, then lost its peers" in outcome.message
