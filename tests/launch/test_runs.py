"""Book-keeping of runs: names that are taken, one run at a time, the history, the list, no secrets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from forgepress.errors import ConfigError, Preempted
from forgepress.launch.collisions import refuse_collision, refuse_running
from forgepress.launch.runs import as_json, find_runs, read_run, table
from forgepress.tests.sessions import config_of
from forgepress.trainer.history import recorded, starts, write_end
from forgepress.trainer.provenance import command_line, git_state
from forgepress.trainer.run_lock import RunLock, holder
from forgepress.trainer.secrets import HIDDEN, hide_secrets, refuse_secrets

HOLD = """
import sys, pathlib
from forgepress.trainer.run_lock import RunLock
lock = RunLock(pathlib.Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
input()
"""
PHASES = [{"name": "dense", "steps": 4}]
ABOUT = {"name": "a", "hosts": ["h"], "total_steps": 8}


def _session(folder: Path, error: BaseException | None = None, *, alone: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with recorded(folder, ABOUT, lambda: 5, alone=alone):
            if error is not None:
                raise error
    except (Preempted, ValueError, ConfigError):
        pass


def test_the_history_says_how_each_session_began_and_ended(tmp_path: Path):
    for error in (Preempted("asked to stop"), ValueError("odd\nsecond line"), None):
        _session(tmp_path, error)
    told = starts(tmp_path)
    assert [start["end"]["state"] for start in told] == ["preempted", "failed", "finished"]
    assert told[1]["end"]["reason"] == "ValueError: odd" and told[1]["end"]["step"] == 5
    assert {"command", "git", "packages", "host", "device", "python"} <= told[0].keys()
    assert told[0]["packages"]["torch"]


def test_among_several_ranks_the_launcher_says_why_it_failed_and_only_of_a_session_that_began(tmp_path: Path):
    _session(tmp_path, ValueError("connection closed by peer"), alone=False)
    (start,) = starts(tmp_path)
    assert start["end"] is None and read_run(tmp_path).state == "killed"
    write_end(tmp_path, "another", "failed", "not ours")
    assert starts(tmp_path)[0]["end"] is None
    write_end(tmp_path, start["session"], "failed", "rank 1 of 2 failed: bad batch\nlogs: …")
    assert read_run(tmp_path).reason == "rank 1 of 2 failed: bad batch"


def test_runs_are_listed_with_state_step_and_main_metric(tmp_path: Path):
    for name, error in (("one", None), ("two", Preempted("asked to stop"))):
        _session(tmp_path / name, error)
        lines = [{"step": 4, "kind": "train", "loss": 0.5}, {"step": 4, "kind": "evaluate", "accuracy": 0.75}]
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "ki'
        (tmp_path / name / "metrics.jsonl").write_text(text)
    (tmp_path / "queued" / "slurm").mkdir(parents=True)
    (tmp_path / "queued" / "slurm" / "job.json").write_text('{"job": "77"}')
    (tmp_path / "no run").mkdir()
    found = {run.name: run for run in find_runs(tmp_path)}
    assert {name: run.state for name, run in found.items()} == {
        "one": "finished",
        "two": "preempted",
        "queued": "submitted",
    }
    assert (found["two"].step, found["two"].metric, found["two"].value) == (4, "accuracy", 0.75)
    assert "accuracy 0.75" in table(list(found.values())) and "SLURM job 77" in table(list(found.values()))
    assert json.loads(as_json([found["one"]]))[0]["total_steps"] == 8


def test_a_second_run_of_a_name_is_refused_by_name_and_a_killed_one_lets_go(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert (holder(tmp_path) or {})["process"] == process.pid
        assert read_run(tmp_path).state == "running"
        with pytest.raises(ConfigError, match=rf"is going on \(process {process.pid} on .*take another name"):
            RunLock(tmp_path).acquire(patience=0.2)
    finally:
        process.kill()
        process.communicate()
    refuse_running(tmp_path)
    assert holder(tmp_path) is None


def test_a_name_that_another_config_has_is_refused_unless_the_user_says_what_is_meant(tmp_path: Path):
    config = config_of(tmp_path / "run", {}, phases=PHASES)
    config.run_folder.mkdir()
    refuse_collision(config)
    with pytest.raises(ConfigError, match="holds no run"):
        refuse_collision(config, resume=True)
    (config.run_folder / "config.yaml").write_text(config.to_yaml())
    refuse_collision(config)
    refuse_collision(config_of(tmp_path / "run", {"shard": 2}, phases=PHASES))  # the mesh is not the run
    changed = config_of(tmp_path / "run", {}, phases=PHASES, seed=config.seed + 1)
    with pytest.raises(
        ConfigError, match=rf"seed: {config.seed} → {changed.seed}(.|\n)*--resume(.|\n)*--overwrite"
    ):
        refuse_collision(changed)
    refuse_collision(changed, resume=True)
    refuse_collision(changed, overwrite=True)
    with pytest.raises(ConfigError, match="both given"):
        refuse_collision(changed, resume=True, overwrite=True)


def test_secrets_are_hidden_in_texts_and_refused_in_configs():
    secret = {"WANDB_API_KEY": "0123456789abcdef", "KEYBOARD": "qwertyqwerty", "MY_TOKEN": "short"}
    assert (
        hide_secrets("login 0123456789abcdef qwertyqwerty short", secret)
        == f"login {HIDDEN} qwertyqwerty short"
    )
    token = "hf_" + "a" * 24
    words = ["forgepress", "train", "a.yaml", "model.args.api_key=geheim", f"data.source.auth={token}"]
    assert (
        command_line(words)
        == f"forgepress train a.yaml model.args.api_key={HIDDEN} data.source.auth={HIDDEN}"
    )
    refuse_secrets({"model": {"pad_token": "x", "args": ["fine"]}}, secret)
    for value in ({"password": "p"}, {"args": ["0123456789abcdef"]}, {"args": [f"see {token}"]}):
        with pytest.raises(ConfigError, match=r"^model\.\S+: holds a secret") as caught:
            refuse_secrets({"model": value}, secret)
        assert "0123" not in str(caught.value) and token not in str(caught.value)


def test_a_commit_is_dirty_once_a_tracked_file_has_changed(tmp_path: Path):
    assert git_state(tmp_path) is None

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    before = git_state(tmp_path)
    (tmp_path / "file").write_text("2")
    after = git_state(tmp_path)
    assert before and after and (before["dirty"], after["dirty"]) == (False, True)
    assert before["commit"] == after["commit"] and len(before["commit"]) == 40
