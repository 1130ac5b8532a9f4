"""Trackers write what they are given, once per step, also across a resume."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.trainer.trackers import JsonLines, Trackers, open_trackers, read_lines
from forgepress.trainer.trackers.scalars import scalars
from forgepress.trainer.trackers.weights_and_biases import run_id, without_secrets

OFF = SimpleNamespace(wandb=None, tensorboard=False, every=1)


def line(step: int, **values) -> dict:
    return {"step": step, "kind": "train", "phase": "dense", **values}


def test_every_line_is_on_disk_before_the_file_is_closed(tmp_path):
    trackers = open_trackers(OFF, tmp_path)
    trackers.log(line(1, loss=torch.tensor(0.25), learning_rate=1e-3))
    assert list(read_lines(tmp_path / "metrics.jsonl")) == [line(1, loss=0.25, learning_rate=1e-3)]
    trackers.close()
    trackers.close()


def test_nan_is_written_as_null_so_that_every_json_reader_takes_the_line(tmp_path):
    trackers = open_trackers(OFF, tmp_path)
    trackers.log(line(1, loss=float("nan"), gradient_norm=torch.tensor(float("inf"))))
    trackers.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == line(
        1, loss=None, gradient_norm=None
    )


def test_a_resumed_run_has_every_step_once(tmp_path):
    for resume_step, steps in ((None, range(1, 8)), (4, range(5, 10))):
        trackers = open_trackers(OFF, tmp_path, resume_step)
        for step in steps:
            trackers.log(line(step, loss=1 / step))
        trackers.close()
    assert [entry["step"] for entry in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 10))


def test_a_half_written_last_line_is_dropped_on_resume_and_passed_over_when_reading(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1.0}\nnot json\n{"step": 2, "loss": 0.12')
    assert [entry["step"] for entry in read_lines(path)] == [1]
    JsonLines(path, resume_step=5).close()
    assert path.read_bytes() == b'{"step": 1, "loss": 1.0}\n'


def test_a_new_run_keeps_the_older_metrics_beside_its_own(tmp_path):
    for loss in (1.0, 2.0):
        trackers = open_trackers(OFF, tmp_path)
        trackers.log(line(1, loss=loss))
        trackers.close()
    assert [entry["loss"] for entry in read_lines(tmp_path / "metrics.jsonl")] == [2.0]
    assert [entry["loss"] for entry in read_lines(tmp_path / "metrics.previous.jsonl")] == [1.0]


def test_other_ranks_write_nothing(tmp_path):
    trackers = open_trackers(OFF, tmp_path, rank=3)
    trackers.log(line(1, loss=1.0))
    trackers.close()
    assert trackers.state == {} and list(tmp_path.iterdir()) == []


def test_dashboards_get_flat_numbers_with_the_kind_in_front():
    step, numbers = scalars(
        {
            "step": 7,
            "kind": "evaluate",
            "phase": "dense",
            "metrics": {"accuracy": 0.5},
            "note": "x",
            "loss": None,
        }
    )
    assert step == 7 and numbers == {"evaluate/metrics/accuracy": 0.5}


def test_tensorboard_shows_the_steps_of_a_resumed_run_once(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking = SimpleNamespace(wandb=None, tensorboard=True, every=1)
    for resume_step, steps in ((None, range(1, 8)), (4, range(5, 10))):
        trackers = open_trackers(tracking, tmp_path, resume_step)
        for step in steps:
            trackers.log(line(step, loss=float(step)))
        trackers.close()
    accumulator = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    points = accumulator.Scalars("train/loss")
    assert [point.step for point in points] == list(range(1, 10))
    assert [point.value for point in points] == [float(step) for step in range(1, 10)]


def test_a_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install .*tensorboard"):
        open_trackers(SimpleNamespace(wandb=None, tensorboard=True, every=1), tmp_path)


def test_a_failing_dashboard_is_reported_once_and_the_metrics_go_on(tmp_path, caplog):
    class Broken:
        def log(self, values):
            raise RuntimeError("no route")

        def close(self):
            raise AssertionError("a tracker that is off is not closed again")

    trackers = Trackers({"jsonl": JsonLines(tmp_path / "metrics.jsonl"), "wandb": Broken()})
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            trackers.log(line(step))
    trackers.close()
    assert [entry["step"] for entry in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert len([record for record in caplog.records if "no route" in record.getMessage()]) == 1


def test_a_metrics_file_that_cannot_be_written_stops_the_run(tmp_path):
    trackers = open_trackers(OFF, tmp_path)
    trackers._trackers["jsonl"].close()
    with pytest.raises(ValueError, match="closed file"):
        trackers.log(line(1))


WANDB_RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from forgepress.trainer.trackers import open_trackers
wandb = SimpleNamespace(project="press", entity=None, tags=("small",))
tracking = SimpleNamespace(wandb=wandb, tensorboard=False, every=1)
resume_step = int(sys.argv[2]) if len(sys.argv) > 2 else None
config = {"model": "lenet_300_100", "data": {"access_token": "tell-nobody-2"}}
trackers = open_trackers(tracking, Path(sys.argv[1]), resume_step, name="demo", config=config)
for step in (1, 2, 3):
    trackers.log({"step": (resume_step or 0) + step, "kind": "train", "loss": 0.5 / step})
print(trackers.state["wandb"]["id"])
trackers.close()
"""


def wandb_process(folder: Path, *arguments: str) -> str:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "WANDB_API_KEY": "tellnobody1" + "0" * 29,
        "WANDB_CACHE_DIR": str(folder / "home"),
    }
    command = [sys.executable, "-c", WANDB_RUN, str(folder / "run"), *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_wandb_runs_offline_in_the_run_folder_with_one_id_across_a_resume_and_without_secrets(tmp_path):
    pytest.importorskip("wandb")
    (tmp_path / "home").mkdir()
    first = wandb_process(tmp_path)
    second = wandb_process(tmp_path, "3")
    assert first == second == (tmp_path / "run/wandb/run-id").read_text().strip()
    stored = sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert len(stored) == 2 and all(path.name == f"run-{first}.wandb" for path in stored)
    assert b"train/loss" in stored[0].read_bytes() and b"lenet_300_100" in stored[0].read_bytes()
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"tellnobody1" not in content and b"tell-nobody-2" not in content, path


def test_a_new_run_gets_a_new_wandb_id_and_a_resumed_one_keeps_it(tmp_path):
    first = run_id(tmp_path, fresh=True)
    assert run_id(tmp_path, fresh=False) == first
    assert run_id(tmp_path, fresh=True) != first


def test_secrets_are_found_by_name_at_any_depth_and_plain_settings_stay():
    given = {"a": [{"API_KEY": "x", "tokens": "bytes"}], "password": "y", "lr": 0.1}
    expected = {"a": [{"API_KEY": "(left out)", "tokens": "bytes"}], "password": "(left out)", "lr": 0.1}
    assert without_secrets(given) == expected


def test_a_missing_wandb_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        open_trackers(SimpleNamespace(wandb={"project": "press"}, tensorboard=False, every=1), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
