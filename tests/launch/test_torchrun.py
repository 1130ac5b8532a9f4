"""The real torchrun: no launcher of ours above the ranks, they watch each other through the store."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

WORKERS = str(Path(__file__).with_name("workers.py"))


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _job(folder: Path, arguments: Sequence[object]) -> str:
    path = folder / "job.json"
    options = {"run_folder": str(folder), "results": str(folder), "timeout": 60.0, "silence": 2.0}
    path.write_text(json.dumps({"arguments": arguments, **options}))
    return str(path)


def _torchrun(function: str, arguments: Sequence[object], folder: Path) -> tuple[int, str]:
    worker = ["-m", "forgepress.launch.worker", f"{WORKERS}:{function}", _job(folder, arguments)]
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(_port())]
    done = subprocess.run([sys.executable, *run, *worker], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_torchruns_ranks_know_their_place_and_end_well(tmp_path: Path):
    code, output = _torchrun("who", [], tmp_path)
    assert code == 0, output
    seen = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert seen == [[0, 2, 0, 2, "torchrun"], [1, 2, 1, 2, "torchrun"]]
    assert "rank 1 speaks" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_a_raise_under_torchrun_gives_one_message_of_ours(tmp_path: Path):
    code, output = _torchrun("torchrun_raise", [1], tmp_path)
    assert code == 1
    assert output.count("error: rank 1 of 2") == 1
    assert "ValueError: bad batch (workers.py:" in output
    assert "Traceback" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_a_stopped_rank_under_torchrun_is_named_and_killed(tmp_path: Path):
    code, output = _torchrun("torchrun_stop", [1], tmp_path)
    assert code == 1
    assert output.count("error: rank 1 of 2") == 1
    assert "no sign of life" in output
    assert "exitcode  : -9" in output  # torchrun saw it end: nothing is left


@pytest.mark.parametrize(
    ("function", "says"), [("torchrun_kill", "its store at"), ("torchrun_raise", "bad batch")]
)
def test_without_an_agent_the_loss_of_the_stores_own_rank_ends_the_others(
    tmp_path: Path, function: str, says: str
):
    job, port = _job(tmp_path, [0]), _port()
    ranks = []
    for rank in (0, 1):
        given = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        command = [sys.executable, "-m", "forgepress.launch.worker", f"{WORKERS}:{function}", job]
        environment = os.environ | {name: str(value) for name, value in given.items()}
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        output = "".join(process.communicate(timeout=60)[1] for process in ranks)
    finally:
        for process in ranks:
            process.kill()
    assert output.count("error: rank 0 of 2") == 1 and says in output
    assert all(process.returncode for process in ranks)


def test_too_few_ranks_at_the_meeting_end_with_a_message_that_counts_them(tmp_path: Path):
    given = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port()}
    code = "from forgepress.parallel import join\nwith join('cpu', timeout=2):\n    pass"
    environment = os.environ | {name: str(value) for name, value in given.items()}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "only 1 of 2 ranks came to 127.0.0.1:" in done.stderr and "within 2 s" in done.stderr, done.stderr
