"""How these tests start ranks: workers.py holds what the ranks do."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forgepress.launch import Future, submit

WORKERS = str(Path(__file__).with_name("workers.py"))
# A launcher in a process of its own, as the command line is one: it takes signals and can be killed.
_LAUNCHER = """
import sys
from pathlib import Path
from forgepress.launch.local import LocalRanks
command = [sys.executable, "-m", "forgepress.launch.worker", sys.argv[1], sys.argv[2]]
sys.exit(LocalRanks(command, int(sys.argv[3]), run_folder=Path(sys.argv[4]), timeout=20.0).run().exit_code)
"""


@pytest.fixture(autouse=True)
def _no_outer_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may themselves run under a launcher; few threads, because several ranks share few cores."""
    outer = ("SLURM_", "TORCHELASTIC_", "FORGEPRESS_")
    for name in [name for name in os.environ if name.startswith(outer) and name != "SLURM_CONF"]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Future]:
    """start("function", …, ranks=2): a function of workers.py on local ranks, logs in tmp_path/logs."""

    def start(function: str, *arguments: object, ranks: int = 2, **options: float) -> Future:
        return submit(f"{WORKERS}:{function}", *arguments, ranks=ranks, run_folder=tmp_path, **options)

    return start


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """launcher("function", [arguments], ranks=2): the same below a launcher process that the test may signal."""
    import json

    started: list[subprocess.Popen[str]] = []

    def launch(function: str, arguments: list[object], ranks: int = 2) -> subprocess.Popen[str]:
        job = tmp_path / "job.json"
        options = {"run_folder": str(tmp_path), "results": None, "timeout": 20.0, "silence": 10.0}
        job.write_text(json.dumps({"arguments": arguments, **options}))
        command = [
            sys.executable,
            "-c",
            _LAUNCHER,
            f"{WORKERS}:{function}",
            str(job),
            str(ranks),
            str(tmp_path),
        ]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """wait_until(condition): at most 20 s."""

    def wait(condition: Callable[[], object], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "what the test waits for has not happened"
            time.sleep(0.02)

    return wait
