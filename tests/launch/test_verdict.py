"""From standings to a verdict and a message: plain values, no process."""

from dataclasses import replace

from forgepress.launch.board import FAILED, FINISHED, Failure, Standing
from forgepress.launch.verdict import blame, judge, message, root_cause
from forgepress.launch.watch import is_consequence

WELL = [
    Standing(rank=rank, host="a", step=9, first_step=0, where="forward", stopped=False) for rank in range(4)
]
FAILURE = Failure(rank=1, host="a", step=9, where="forward", cause="ValueError: bad", at=2.0)
LOST = Failure(rank=0, host="a", step=9, where="forward", cause="connection closed", consequence=True, at=1.0)


def _with(rank: int, **changes: object) -> list[Standing]:
    return [replace(standing, **changes) if standing.rank == rank else standing for standing in WELL]  # type: ignore[arg-type]


def test_ranks_that_beat_are_left_alone():
    assert judge(WELL, timeout=60) is None


def test_no_beat_for_the_timeout_is_a_hang_but_not_in_the_first_step_or_when_it_was_announced():
    verdict = judge(_with(2, quiet=61.0), timeout=60)
    assert verdict and verdict.hang
    assert judge(_with(2, quiet=61.0, first_step=9), timeout=60) is None
    assert judge(_with(2, quiet=601.0, first_step=9), timeout=60) is not None
    assert judge(_with(2, quiet=61.0, allow=120.0), timeout=60) is None


def test_the_rank_furthest_behind_is_blamed_for_a_hang_not_those_that_wait_for_it():
    standings = [replace(standing, quiet=61.0) for standing in _with(3, step=8)]
    verdict = judge(standings, timeout=60)
    assert verdict and verdict.failure.rank == 3


def test_silence_is_believed_at_once_from_a_stopped_process_later_from_one_that_nobody_can_look_at():
    assert judge(_with(1, silent=11.0, stopped=True), timeout=60, silence=10)
    assert judge(_with(1, silent=500.0, stopped=False), timeout=60, silence=10) is None
    assert judge(_with(1, silent=29.0, stopped=None), timeout=60, silence=10) is None
    assert judge(_with(1, silent=31.0, stopped=None), timeout=60, silence=10)


def test_a_rank_that_has_finished_is_not_missed():
    assert judge(_with(1, status=FINISHED, quiet=1e4, silent=1e4, stopped=True), timeout=60) is None


def test_the_first_real_failure_wins_over_earlier_consequences():
    assert root_cause([LOST, FAILURE]) is FAILURE
    earlier = replace(FAILURE, rank=2, at=1.5)
    assert root_cause([LOST, FAILURE, earlier]) is earlier


def test_errors_that_only_say_that_a_peer_is_gone_are_told_from_causes():
    gloo = "[pair.cc:553] Connection closed by peer [127.0.0.1]:1. This is typically caused by …"
    assert is_consequence(RuntimeError(gloo))
    assert is_consequence(RuntimeError("Timed out waiting 1800000ms for recv operation to complete"))
    assert is_consequence(ConnectionResetError("Connection reset by peer"))
    assert not is_consequence(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_consequence(FileNotFoundError("No such file"))


def test_if_all_failures_are_consequences_the_rank_that_never_came_is_blamed():
    standings = [replace(WELL[0], status=FAILED, failure=LOST), WELL[1], replace(WELL[2], step=8), WELL[3]]
    verdict = blame([LOST], standings)
    assert verdict.failure.rank == 2 and verdict.hang
    assert "stopped" not in verdict.failure.cause
    standings[2] = replace(standings[2], stopped=True)
    assert "the process is stopped" in blame([LOST], standings).failure.cause
    assert blame([LOST, FAILURE], standings).failure is FAILURE


def test_the_message_groups_ranks_that_stood_alike():
    standings = _with(1, status=FAILED, failure=FAILURE)
    standings += [replace(WELL[0], rank=4, step=7), replace(WELL[0], rank=5, status=FINISHED)]
    verdict = blame([FAILURE], standings)
    assert message(verdict, standings, logs="runs/x/logs/rank-1.log").splitlines() == [
        "error: rank 1 of 6 (host a) failed at step 9, forward: ValueError: bad",
        "  ranks 0, 2-3: step 9, forward",
        "  rank 4: step 7, forward",
        "  rank 5: finished",
        "  logs: runs/x/logs/rank-1.log",
    ]


def test_one_failure_on_all_ranks_is_said_once():
    standings = [replace(s, status=FAILED, failure=replace(FAILURE, rank=s.rank)) for s in WELL]
    lines = message(blame([FAILURE], standings), standings).splitlines()
    assert lines == ["error: all 4 ranks failed at step 9, forward: ValueError: bad"]
