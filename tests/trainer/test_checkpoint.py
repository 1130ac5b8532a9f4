"""Checkpoints: whole or not there, kept or deleted, damaged and passed over, and back bit for bit."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forgepress.errors import CheckpointError
from forgepress.parallel import Mesh
from forgepress.tests.ranks import RanksFailed, run_on_ranks
from forgepress.tests.sessions import StopHere, Watched, config_of
from forgepress.trainer import checkpoint_files
from forgepress.trainer.checkpoint_files import damage, steps_in, tidy
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer
from forgepress.trainer.verify import Trace, Traced, compare, read_trace
from torch.distributed.checkpoint import FileSystemWriter

STEPS = 8  # checkpoints after 3, 6 and 8


def config(folder: Path, *, ranks: int = 1, **values: Any) -> RunConfig:
    surgery = {"name": "pruning.network_surgery", "sparsity": 0.5}
    phases = [{"name": "compress", "steps": STEPS, "techniques": [surgery]}]
    tracking = {"every": 1}
    given = {"phases": phases, "tracking": tracking, **values}
    return config_of(folder, {"shard": ranks}, **given)


def fit(config: RunConfig, stop_at: int = 0) -> Trace:
    """One session in this process."""
    trainer = Watched(config)
    trainer.stop_at = stop_at
    try:
        trainer.fit()
    except StopHere:
        assert stop_at
    return read_trace(config.run_folder)


def state_of(config: RunConfig, step: int) -> dict[str, Any]:
    return json.loads((config.run_folder / "checkpoints" / f"step-{step}" / "state.json").read_text())


def lines_of(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not_stopped(
    tmp_path: Path, asynchronous: bool, precision: str
) -> None:
    settings = {"precision": precision, "checkpoint": {"asynchronous": asynchronous}}
    unbroken, stopped = config(tmp_path / "unbroken", **settings), config(tmp_path / "stopped", **settings)
    fit(stopped, stop_at=3)
    difference = compare(fit(unbroken), fit(stopped))
    assert difference.within(exact=True), difference
    scaler = state_of(stopped, STEPS)["scaler"]
    assert scaler == state_of(unbroken, STEPS)["scaler"]
    assert (scaler is not None) == (precision == "fp16")


def test_the_metrics_of_a_resumed_run_have_every_step_once(tmp_path: Path) -> None:
    stopped = config(tmp_path / "stopped")
    fit(stopped, stop_at=6)
    with (stopped.run_folder / "metrics.jsonl").open(
        "a"
    ) as file:  # a kill later on: steps that no checkpoint has
        file.write('{"step": 7, "kind": "train", "loss": 1.0}\n{"step": 8, "kind": "tr')
    fit(stopped)
    assert [line["step"] for line in lines_of(stopped) if line["kind"] == "train"] == list(
        range(1, STEPS + 1)
    )
    assert [line["step"] for line in lines_of(stopped) if line["kind"] == "checkpoint"] == [3, 6, 8]


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    best = {
        "every": 2,
        "best": {"metric": "loss", "mode": "max"},
    }  # the first evaluation has the largest loss
    kept = config(tmp_path / "kept", evaluate=best, checkpoint={"every": 2, "keep": 1, "keep_best": True})
    fit(kept)
    assert steps_in(kept.run_folder / "checkpoints") == [2, STEPS]
    assert state_of(kept, STEPS)["best"]["step"] == 2


def test_damaged_steps_that_were_passed_over_push_out_no_whole_one(tmp_path: Path) -> None:
    for name in ("step-2", "step-4", "step-5", "step-9", "step-6.saving"):
        (tmp_path / name).mkdir()
    tidy(tmp_path, 5, keep=1, spare=[2])  # step 9 was damaged, the run went on from 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-5"]


def _truncate(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-7])


def _flip(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _forget_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def _spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2]")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_truncate, "bytes instead of"),
        (_flip, "has other content than was written"),
        (_forget_state, "state.json is missing"),
        (_spoil_manifest, "manifest.json or state.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], None], says: str
) -> None:
    harmed = config(tmp_path / "harmed")
    fit(harmed, stop_at=6)
    folder = harmed.run_folder / "checkpoints"
    harm(folder / "step-6")
    capsys.readouterr()
    whole = fit(harmed)
    output = capsys.readouterr().out
    assert "checkpoint step-6 is damaged" in output and says in output
    assert "resumed from step 3" in output
    assert sorted(whole.steps) == list(range(1, STEPS + 1))
    assert [damage(folder / f"step-{step}") for step in steps_in(folder)] == [None, None]


def test_with_all_checkpoints_damaged_the_run_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    harmed = config(tmp_path / "harmed")
    fit(harmed, stop_at=6)
    for step in (3, 6):
        _flip(harmed.run_folder / "checkpoints" / f"step-{step}")
    with pytest.raises(CheckpointError, match=r"no undamaged checkpoint in .* --fresh"):
        fit(harmed)
    assert steps_in(harmed.run_folder / "checkpoints") == [3, 6]


def _no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    full = config(tmp_path / "full", checkpoint={"asynchronous": asynchronous})
    fit(full, stop_at=3)
    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(checkpoint_files, "_write_json", _no_space)
        fit(full)
    message = str(caught.value)
    assert "step-6" in message and "No space left on device" in message and "step-3 is whole" in message
    assert sorted(path.name for path in (full.run_folder / "checkpoints").iterdir()) == ["step-3"]
    assert compare(fit(config(tmp_path / "unbroken")), fit(full)).within(exact=True)


def _fill_the_disk_of_rank_1(values: dict[str, Any]) -> str:
    mesh = Mesh.build(values["parallel"] and RunConfig.model_validate(values).parallel.degrees)
    whole = FileSystemWriter.write_data
    if mesh.rank == 1:
        FileSystemWriter.write_data = _no_space
    try:
        Trainer(RunConfig.model_validate(values), mesh=mesh).fit()
    except CheckpointError as error:
        return str(error)
    finally:
        FileSystemWriter.write_data = whole
    return ""


def test_a_disk_that_is_full_on_one_rank_stops_all_with_the_same_cause(tmp_path: Path) -> None:
    full = config(tmp_path / "full", ranks=2)
    messages = run_on_ranks(_fill_the_disk_of_rank_1, full.model_dump(mode="json"), ranks=2)
    assert all("rank 1" in message and "No space left on device" in message for message in messages), messages
    assert list((full.run_folder / "checkpoints").iterdir()) == []


class KilledWhileWriting(Traced):
    """kill -9 of the rank that commits, with the files of step 6 written and not yet renamed."""

    def fit(self) -> dict[str, Any]:
        whole = checkpoint_files.commit

        def commit(temporary: Path, final: Path, state: dict[str, Any]) -> None:
            if final.name == "step-6":
                os.kill(os.getpid(), signal.SIGKILL)
            whole(temporary, final, state)

        checkpoint_files.commit = commit
        return super().fit()


def _session(kind: type[Trainer], values: dict[str, Any]) -> None:
    config = RunConfig.model_validate(values)
    kind(config, mesh=Mesh.build(config.parallel.degrees)).fit()


def test_kill_9_in_the_middle_of_a_save_leaves_the_one_before(tmp_path: Path) -> None:
    killed, unbroken = config(tmp_path / "killed", ranks=2), config(tmp_path / "unbroken", ranks=2)
    with pytest.raises(RanksFailed, match="exit code -9"):
        run_on_ranks(_session, KilledWhileWriting, killed.model_dump(mode="json"), ranks=2)
    folder = killed.run_folder / "checkpoints"
    assert steps_in(folder) == [3] and (folder / "step-6.saving").exists()
    assert damage(folder / "step-3") is None
    for each in (killed, unbroken):
        run_on_ranks(_session, Traced, each.model_dump(mode="json"), ranks=2)
    assert not list(folder.glob("*.saving"))
    assert compare(read_trace(unbroken.run_folder), read_trace(killed.run_folder)).within(exact=True)


def test_what_a_killed_save_left_goes_when_the_run_starts_again(tmp_path: Path) -> None:
    again = config(tmp_path / "again")
    fit(again)
    left = again.run_folder / "checkpoints" / "step-5.saving"
    left.mkdir()
    fit(again)  # finished already: nothing is saved that could tidy up
    assert not left.exists()


def test_a_checkpoint_of_another_folder_is_found_where_it_lies(tmp_path: Path) -> None:
    """Run folders may be moved: nothing in a checkpoint names its place."""
    here = config(tmp_path / "here")
    fit(here, stop_at=3)
    shutil.move(str(here.run_folder), str(tmp_path / "there"))
    there = config(tmp_path / "there")
    assert compare(fit(config(tmp_path / "unbroken")), fit(there)).within(exact=True)
