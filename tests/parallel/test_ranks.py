"""The helper that runs tests on ranks: results in order, failures told, broken workers replaced."""

import os
import time

import pytest
import torch.distributed as dist
from forgepress.tests.ranks import RanksFailed, run_on_ranks


def who(factor: int, *, plus: int = 0) -> tuple[int, int, int]:
    return dist.get_rank() * factor + plus, dist.get_world_size(), os.getpid()


def fail_on(rank: int, how: str) -> None:
    if dist.get_rank() == rank:
        if how == "raise":
            raise ValueError("seventeen rows")
        if how == "die":
            os._exit(7)
        time.sleep(60)
    dist.barrier()


def test_results_come_in_rank_order_from_processes_that_are_used_again() -> None:
    first = run_on_ranks(who, 10, plus=1, ranks=3)
    second = run_on_ranks(who, 10, plus=1, ranks=3)
    assert [answer[:2] for answer in first] == [(1, 3), (11, 3), (21, 3)]
    assert first == second
    assert os.getpid() not in {answer[2] for answer in first}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "rank 1 of 3: Traceback(.|\n)*seventeen rows"),
        ("die", "rank 1 of 3: the process died with exit code 7"),
        ("hang", "rank 1 of 3: did not answer in time"),
    ],
)
def test_a_failing_rank_fails_the_call_by_name_and_the_next_call_works(how: str, message: str) -> None:
    with pytest.raises(RanksFailed, match=message):
        run_on_ranks(fail_on, 1, how, ranks=3, timeout=10 if how == "hang" else 120)
    assert [answer[0] for answer in run_on_ranks(who, 1, ranks=3)] == [0, 1, 2]


def test_one_rank_runs_without_a_process_group() -> None:
    assert run_on_ranks(dist.is_initialized, ranks=1) == [False]
