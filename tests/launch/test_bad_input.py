"""What people get wrong, through the real command line: one message, exit code 2, no traceback, on 1 rank and on 2."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from forgepress.errors import ForgepressError
from forgepress.launch.cli import main
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer

CONFIG = """
name: run
model: lenet_300_100
data: {source: digits, batch: 32}
phases: [{name: train, steps: 2}]
checkpoint: {folder: RUNS}
"""
GPT = ["model={name: gpt, layers: 2, heads: 3, width: 24}", "data.source={text: words.txt, length: 16}"]
NOTHING = "phases.0.techniques=[{name: pruning.magnitude, sparsity: 0.5, match: 'fc9*'}]"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config that would run, in a working folder with a text, a file, and MNIST's files cut off."""
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 50)
    Path("cut").mkdir()
    for name, labels in (("train", 40), ("t10k", 40)):
        header = struct.pack(">4B3I", 0, 0, 8, 3, 40, 28, 28)
        Path(f"cut/{name}-images-idx3-ubyte").write_bytes(header + bytes(40 * 28 * 28 - 5))
        Path(f"cut/{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">4BI", 0, 0, 8, 1, labels) + bytes(labels)
        )
    Path("run.yaml").write_text(CONFIG.replace("RUNS", str(tmp_path / "runs")))
    return "run.yaml"


def train(*words: str) -> tuple[int, str]:
    """`forgepress train …` in processes of its own: (exit code, all that it said)."""
    command = [sys.executable, "-m", "forgepress.launch", "train", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return done.returncode, done.stdout + done.stderr


def is_one_message(output: str, says: str) -> bool:
    return output.count(says) == 1 and output.count("error:") == 1 and "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optimizr.lr=1"], "did you mean optimizer?"),
        (["data.batch=many"], "given 'many'; want a whole number"),
        (
            ["phases.0.techniques=[{name: pruning.magnitude, sparsity: 1.5}]"],
            "sparsity=1.5: want a share from 0",
        ),
        (["checkpoint.folder=words.txt"], "the run folder words.txt/run cannot be written (Not a directory)"),
        (["checkpoint.folder=/proc/runs"], "the run folder /proc/runs/run cannot be written"),
    ],
)
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_what_the_launcher_sees_is_said_before_any_rank_starts(
    config: str, capfd: pytest.CaptureFixture[str], words: list[str], says: str, ranks: str
) -> None:
    words = [f"parallel.replicate={ranks}", *words]
    assert main(["train", config, *words]) == 2
    captured = capfd.readouterr()
    assert is_one_message(captured.out + captured.err, says), captured
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([NOTHING], "matches no parameter with match: fc9*; the model has fc1.weight"),
        (
            ["parallel.replicate=2", NOTHING],
            "matches no parameter with match: fc9*; the model has fc1.weight",
        ),
        (["parallel.shard=2", "data.source={idx: cut}"], "the file is cut off or damaged, get it again"),
        (["parallel.shard=2", "--ranks", "3"], "shard=2 needs 2 ranks, but 3 were launched"),
    ],
)
def test_what_ranks_find_is_said_once(config: str, words: list[str], says: str) -> None:
    code, output = train(config, *words)
    assert code == 2
    assert is_one_message(output, says), output
    assert not Path("runs/run/checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.source={idx: nowhere}"], "'nowhere' is no folder"),
        (["data.source={text: nothing.txt, length: 8}"], "nothing.txt"),
        (["data.source={idx: cut}"], "its header promises 31376 bytes"),
        (["data.batch=1", "parallel.microbatches=2"], "want at least 2, so that each has a row"),
        (
            ["parallel.engine=deepspeed", "parallel.tensor=2"],
            "engine deepspeed has replicate and shard alone",
        ),
        (["parallel.engine=accelerate", "parallel.pipeline=2"], "engine accelerate has replicate"),
        (["parallel.context=2"], "this model has no sequences that could be cut"),
        (["parallel.tensor=7"], "parallel.tensor=7 does not divide the model's 300 fc1 features"),
        ([*GPT, "parallel.tensor=2"], "parallel.tensor=2 does not divide the model's 3 attention heads"),
        (["parallel.pipeline=2"], "parallel.microbatches=1: 1f1b wants at least pipeline=2"),
        (["parallel.pipeline=2", "parallel.microbatches=2", "parallel.stages=[[fc1]]"], "parallel.stages"),
        (["evaluate.best={metric: acuracy}"], "did you mean accuracy?"),
    ],
)
def test_every_rank_refuses_it_before_the_run_folder_is_touched(
    config: str, words: list[str], says: str
) -> None:
    """What each rank does when it has joined; how one message comes of it is tested above."""
    with pytest.raises(ForgepressError) as caught:
        Trainer(RunConfig.load(config, overrides=words)).fit()
    assert caught.value.exit_code == 2
    assert says in str(caught.value)
    assert not Path("runs").exists()
