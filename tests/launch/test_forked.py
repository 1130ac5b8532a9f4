"""Ranks that are copies of the launcher: what they share with it, what they do not, and how they end."""

import socket
import subprocess
import sys
from pathlib import Path

from forgepress.launch.local import hold_port

# A launcher whose ranks are copies of it, in a process of its own: pytest has threads, which copies must not have.
LAUNCHER = """
import atexit, os, signal, sys, threading
from pathlib import Path
from forgepress.launch.forked import can_fork
from forgepress.launch.local import LocalRanks
folder, what = Path(sys.argv[1]), sys.argv[2]
here, known = os.getpid(), object()
atexit.register(lambda: (folder / f"end-{os.environ.get('RANK', 'launcher')}").touch())
def work():
    rank = int(os.environ["RANK"])
    own = (os.getppid() == here, os.getsid(0) == os.getpid())
    print("rank", rank, os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"], *own)
    taken = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    print("handlers", taken == [signal.default_int_handler, signal.SIG_DFL], sys.stdin.read() == "")
    if what == "raise" and rank == 1:
        raise ValueError("odd")
    if what == "kill" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 75 if what == "preempted" else sys.exit(0)
assert can_fork()
ranks = LocalRanks(work, 2, run_folder=folder)
os.environ["KEPT"] = "1"
outcome = ranks.run()
assert os.getpid() == here and "RANK" not in os.environ
print("outcome", outcome.exit_code, outcome.signals)
threading.Thread(target=input, daemon=True).start()
assert not can_fork()
"""


def _launch(folder: Path, what: str) -> tuple[str, str]:
    """What the launcher and rank 0 said, and what rank 1 did."""
    command = [sys.executable, "-c", LAUNCHER, str(folder), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.PIPE)
    return done.stdout + done.stderr, (folder / "logs" / "rank-1.log").read_text()


def test_a_copy_has_its_own_environment_session_output_and_usual_handlers(tmp_path: Path):
    said, log = _launch(tmp_path, "well")
    first = next(line for line in said.splitlines() if line.startswith("rank 0"))
    port = first.split()[3]
    assert first == f"rank 0 2 {port} True True"
    assert log == f"rank 1 2 {port} True True\nhandlers True True\n"
    assert "handlers True True" in said and "outcome 0 ()" in said
    # each process ends as an interpreter does, and only once
    assert sorted(path.name for path in tmp_path.glob("end-*")) == ["end-0", "end-1", "end-launcher"]


def test_how_a_copy_ends_is_the_outcome(tmp_path: Path):
    for what, outcome, cause in (
        ("raise", "outcome 1 ()", "exit code 1"),
        ("kill", "outcome 1 (9,)", "killed by SIGKILL"),
        ("preempted", "outcome 75 ()", ""),
    ):
        folder = tmp_path / what
        said, log = _launch(folder, what)
        assert outcome in said and cause in said, said
        assert ("ValueError: odd" in log) == (what == "raise")


def test_a_held_port_is_given_to_nobody_who_does_not_name_it():
    with hold_port() as held, socket.socket() as named, socket.socket() as other:
        port = held.getsockname()[1]
        named.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
        named.bind(("0.0.0.0", port))
        named.listen()
        other.bind(("127.0.0.1", 0))
        assert other.getsockname()[1] != port
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
