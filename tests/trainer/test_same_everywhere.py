"""Ranks that read other data are named before the first step, and a slow one in the log."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from forgepress.errors import DataError
from forgepress.parallel import Mesh
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import config_of, run
from forgepress.trainer.same_everywhere import Late, refuse_uneven_data
from torch import Tensor, nn


def refused(rows: list[int], held_out: list[int]) -> str:
    """What a rank says of data with so many rows on each rank."""
    mesh = Mesh.build({"replicate": len(rows)})
    data: Any = SimpleNamespace(source=range(rows[mesh.rank]), test=range(held_out[mesh.rank]))
    try:
        refuse_uneven_data(data, mesh)
    except DataError as error:
        return str(error)
    return ""


def test_a_rank_that_reads_other_data_is_named_on_all_ranks() -> None:
    assert run_on_ranks(refused, [70, 70, 70], [5, 5, 5], ranks=3) == ["", "", ""]
    answers = run_on_ranks(refused, [70, 70, 69], [5, 5, 5], ranks=3)
    assert (
        len(set(answers)) == 1
        and "rank 0" in answers[0]
        and "rank 2" in answers[0]
        and "69 rows" in answers[0]
    )
    assert "rank 1" not in answers[0]
    assert all("4 held-out" in text for text in run_on_ranks(refused, [7, 7], [5, 4], ranks=2))


def late(rank: int) -> list[Any]:
    """Asked three times; `rank` comes 60 ms late to the second, and nobody is asked about the third."""
    mesh = Mesh.build({"shard": 3})
    looking, found = Late(mesh), []
    for number in range(3):
        looking.asked = number < 2
        dist.barrier()
        if number and mesh.rank == rank:
            time.sleep(0.06)
        looking.arrive()
        found.append(looking.slowest(0.2))
    return found


def test_the_late_rank_is_found_where_it_was_asked_for() -> None:
    for answers in run_on_ranks(late, 1, ranks=3):
        assert answers[0] is None and answers[2] is None
        assert answers[1][0] == 1 and answers[1][1] > 0.03


class Sleepy(nn.Linear):
    """A layer that takes its time on rank 1."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and dist.is_initialized() and dist.get_rank() == 1:
            time.sleep(0.05)
        return super().forward(input.flatten(1))


def sleepy() -> nn.Module:
    return Sleepy(64, 10)


def test_a_slow_rank_is_named_in_the_metrics(tmp_path: Path) -> None:
    config = config_of(
        tmp_path / "run",
        {"replicate": 2},
        model={"factory": "forgepress.tests.trainer.test_same_everywhere:sleepy"},
        phases=[{"name": "train", "steps": 8}],
        tracking={"every": 1},
    )
    run(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    named = [line["slowest_rank"] for line in lines if line["kind"] == "train" and "slowest_rank" in line]
    assert named.count(1) >= 3 and named.count(1) > named.count(0)
