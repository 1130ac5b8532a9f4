"""Asked to stop: every rank saves after the same step, and the run that goes on ends with the same bits."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from forgepress.errors import Preempted
from forgepress.parallel import Mesh
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import config_of
from forgepress.trainer import interrupts
from forgepress.trainer.checkpoint_files import steps_in
from forgepress.trainer.config import RunConfig
from forgepress.trainer.interrupts import Interrupts
from forgepress.trainer.step import Steps
from forgepress.trainer.verify import Traced, compare, read_trace

STOP = (signal.SIGTERM, signal.SIGUSR1)


def config(folder: Path, ranks: int = 1) -> RunConfig:
    phases = [{"name": "first", "steps": 4}, {"name": "second", "steps": 4}]
    return config_of(folder, {"shard": ranks}, phases=phases, checkpoint={"every": 0})


class Signalled(Traced):
    """The last rank gets a signal in the middle of the work on a step."""

    number, at = 0, 0

    def _after_step(self, steps: Steps) -> None:
        super()._after_step(steps)
        if self.step == self.at - 1 and self.mesh.rank == self.mesh.world - 1:
            os.kill(os.getpid(), self.number)


def session(values: dict[str, Any], number: int, at: int) -> str:
    """One rank of a run; the message of the Preempted that ends it, or ''."""
    config = RunConfig.model_validate(values)
    trainer = Signalled(config, mesh=Mesh.build(config.parallel.degrees))
    trainer.number, trainer.at = number, at
    usual, interrupts._SECONDS_BETWEEN_VOTES = (
        interrupts._SECONDS_BETWEEN_VOTES,
        0.0,
    )  # short steps: vote at each
    try:
        trainer.fit()
    except Preempted as stopped:
        return str(stopped)
    finally:
        interrupts._SECONDS_BETWEEN_VOTES = usual
    return ""


@pytest.mark.parametrize(
    ("number", "at", "ranks"),
    [
        (signal.SIGTERM, 3, 1),
        (signal.SIGUSR1, 4, 1),  # at the last step of a phase: its end is saved first
        (signal.SIGTERM, 6, 2),
    ],
)
def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_nothing_is_lost(
    tmp_path: Path, number: int, at: int, ranks: int
) -> None:
    stopped, unbroken = config(tmp_path / "stopped", ranks), config(tmp_path / "unbroken", ranks)
    messages = run_on_ranks(session, stopped.model_dump(mode="json"), number, at, ranks=ranks)
    assert len(set(messages)) == 1 and f"step {at} is saved" in messages[0], messages
    assert steps_in(stopped.run_folder / "checkpoints")[-1] == at
    for each in (stopped, unbroken):
        assert run_on_ranks(session, each.model_dump(mode="json"), 0, 0, ranks=ranks) == [""] * ranks
    difference = compare(read_trace(unbroken.run_folder), read_trace(stopped.run_folder))
    assert difference.within(exact=True), difference


def test_a_signal_in_the_last_step_lets_the_run_finish(tmp_path: Path) -> None:
    last = config(tmp_path / "last")
    assert run_on_ranks(session, last.model_dump(mode="json"), signal.SIGTERM, 8, ranks=1) == [""]
    assert sorted(read_trace(last.run_folder).steps) == list(range(1, 9))


def test_the_programs_own_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in STOP]
    asked = Interrupts(Mesh())
    assert [signal.getsignal(number) for number in STOP] != before
    assert not asked.agreed(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked.agreed(2)
    asked.close()
    assert [signal.getsignal(number) for number in STOP] == before


def _votes(steps: int) -> tuple[int, list[int]]:
    """(votes taken, steps at which it was agreed to stop) with rank 0 asked at step 50; step times differ by rank."""
    import time

    mesh = Mesh.build({"replicate": 2})
    asked, taken, agreed = Interrupts(mesh), 0, []
    whole = type(mesh).reduce

    def counting(self: Mesh, *args: Any, **options: Any) -> Any:
        nonlocal taken
        taken += 1
        return whole(self, *args, **options)

    type(mesh).reduce = counting
    try:
        for step in range(1, steps + 1):
            time.sleep(0.001 * (1 + mesh.rank))
            if step == 50 and mesh.rank == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
            if asked.agreed(step):
                agreed.append(step)
    finally:
        type(mesh).reduce = whole
        asked.close()
    return taken, agreed


def test_ranks_vote_seldom_and_at_the_same_steps() -> None:
    (taken, agreed), (taken_there, agreed_there) = run_on_ranks(_votes, 400, ranks=2)
    assert taken == taken_there and agreed == agreed_there
    assert agreed and agreed[0] >= 50
    assert taken < 40  # a vote at each of the 400 steps would cost more than a short step itself
