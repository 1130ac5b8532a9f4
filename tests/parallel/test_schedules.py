"""Schedules: every one trains as one process, also where FSDP2 shards the stages and where backward is split."""

from typing import Any

import pytest
from forgepress.errors import ConfigError
from forgepress.parallel.schedules import SCHEDULES, bubble, check_schedule, home_of_outputs, stages_of
from forgepress.tests.parallel.test_native import check

PIPELINE, SHARDED = {"pipeline": 2}, {"pipeline": 2, "shard": 2}


@pytest.mark.parametrize(
    ("schedule", "ranks", "degrees"),
    [
        ("looped_bfs", 2, PIPELINE),
        # torch's split backward gives wrong gradients where FSDP2 reshards a stage after its forward
        ("interleaved_zero_bubble", 4, SHARDED),
        ("zbv", 4, SHARDED),
        ("dualpipev", 4, SHARDED),
        ("zbv", 8, {**SHARDED, "tensor": 2}),
    ],
)
def test_schedules_with_several_stages_a_rank_train_as_one_process(
    schedule: str, ranks: int, degrees: dict[str, int]
) -> None:
    check("transformer", ranks, degrees, microbatches=4, schedule=schedule)


def test_batch_normalisation_is_that_of_one_process_where_backward_is_split() -> None:
    check("conv", 4, SHARDED, microbatches=4, schedule="dualpipev")


def test_folded_stages_lie_like_a_v() -> None:
    assert stages_of("zbv", 3, 6) == [[0, 5], [1, 4], [2, 3]]
    assert stages_of("interleaved1f1b", 3, 6) == [[0, 3], [1, 4], [2, 5]]
    assert [home_of_outputs(name, 3) for name in SCHEDULES] == [2, 2, 2, 2, 2, 0, 0]


def test_bubbles_are_those_of_the_papers() -> None:
    assert bubble("1f1b", 2, 4, 1) == bubble("gpipe", 2, 4, 1) == 1 / 5
    assert bubble("interleaved1f1b", 4, 8, 2) == 3 / 19
    assert bubble("interleaved_zero_bubble", 4, 8, 2) == pytest.approx(1 / 17)
    assert bubble("dualpipev", 4, 8, 2) == pytest.approx(2 / 18)
    assert bubble("zbv", 4, 8, 2) == 0.0 < bubble("zbv", 4, 4, 2)


@pytest.mark.parametrize(
    ("schedule", "numbers", "message"),
    [
        ("zbv", {"stages": 6}, "zbv folds them once and wants 4"),
        ("dualpipev", {"microbatches": 3}, "dualpipev wants at least as many as stages, 4"),
        ("looped_bfs", {"stages": 3}, "3 stages cannot be dealt evenly to pipeline=2 ranks"),
        ("interleaved_zero_bubble", {"microbatches": 5}, "use a multiple of pipeline=2"),
        ("1f1b", {}, "1f1b has one stage per rank"),
    ],
)
def test_a_schedule_says_what_it_wants(schedule: str, numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_schedule(schedule, **{"ranks": 2, "microbatches": 4, "stages": 4, **numbers})
