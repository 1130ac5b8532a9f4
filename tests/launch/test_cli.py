import subprocess
import sys
from pathlib import Path

import pytest
from forgepress.errors import ConfigError
from forgepress.launch.cli import main, split_words
from forgepress.launch.commands import degrees, mesh_and_engine

COMMANDS = (
    *("train", "check", "verify", "export", "report", "techniques", "schema", "bench"),
    *("runs", "doctor", "slurm", "sweep", "compare"),
)


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forgepress.launch", *words], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("words", [["--help"], ["train", "missing.yaml"], ["train", "nonsense"]])
def test_help_and_config_errors_do_not_load_torch(words: list[str]):
    code = (
        f"import sys; from forgepress.launch.cli import main; main({words!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_help_lists_the_commands_of_this_version():
    done = _run("--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert set(COMMANDS) <= set(listed)


def test_a_config_that_is_not_there_is_one_line_on_stderr_and_exit_2(tmp_path: Path):
    done = _run("train", str(tmp_path / "missing.yaml"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "missing.yaml" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "nonsense"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("FORGEPRESS_DEBUG", "1")
    assert main(["train", "nonsense"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_half_set_environment_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["train", "missing.yaml"]) == 2
    assert "WORLD_SIZE=4 given, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT missing" in capsys.readouterr().err


def test_an_unknown_command_or_option_is_exit_2(capsys: pytest.CaptureFixture[str]):
    assert main(["trian"]) == 2
    assert main(["train", "a.yaml", "--rank", "2"]) == 2
    assert main(["train", "a.yaml", "--ranks", "0"]) == 2
    assert "trian" in capsys.readouterr().err


def test_ctrl_c_is_exit_130(monkeypatch: pytest.MonkeyPatch):
    def interrupted(words: list[str], **options: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("forgepress.launch.cli.load", interrupted)
    assert main(["train", "a.yaml"]) == 130


def test_words_are_config_files_or_settings(tmp_path: Path):
    odd = tmp_path / "lr=1.yaml"
    odd.touch()
    words = ["a.yaml", "b.yml", "data.batch=64", "data.source=x.yaml", "phases.0.steps=5", str(odd)]
    files, overrides = split_words(words)
    assert files == [Path("a.yaml"), Path("b.yml"), odd]
    assert overrides == ["data.batch=64", "data.source=x.yaml", "phases.0.steps=5"]
    with pytest.raises(ConfigError, match=r"'data\.batch' is neither a config file"):
        split_words(["a.yaml", "data.batch"])
    with pytest.raises(ConfigError, match="no config file given"):
        split_words(["data.batch=64"])


def test_a_mesh_may_name_an_engine():
    assert mesh_and_engine("shard=2") == {"shard": 2}
    stage = {"engine": "deepspeed", "deepspeed": {"stage": 3}}
    assert mesh_and_engine("shard=2, engine=zero-3") == {"shard": 2, **stage}
    assert mesh_and_engine("engine=accelerate") == {"engine": "accelerate"}
    for text in ("shard=2,engine=zero", "engine=zero-4", "engine=horovod", "engine=3"):
        with pytest.raises(ConfigError, match="zero-0 to zero-3"):
            mesh_and_engine(text)


def test_mesh_degrees_are_read_or_refused_by_name():
    assert degrees("shard=2, tensor=3") == {"shard": 2, "tensor": 3}
    for text in ("shard", "shard=0", "shard=two", "shards=2", "shard=2,shard=2", ""):
        with pytest.raises(ConfigError, match="AXIS=DEGREE"):
            degrees(text)
