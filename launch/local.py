"""Local ranks: start them, pass signals on, watch them, end them all."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from .board import FAILED, RUNNING, Board, Failure, Standing, process_is_stopped
from .environment import child_environment
from .forked import Forked, can_fork
from .logs import log_path, open_log
from .verdict import Verdict, blame, grace, judge, message
from .watch import SILENCE

Process = subprocess.Popen[Any] | Forked
PREEMPTED = 75
_POLL = 0.05  # seconds between two looks at the ranks


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a set of local ranks ended."""

    exit_code: int
    verdict: Verdict | None = None
    message: str = ""  # what was printed; empty when nothing failed
    signals: tuple[int, ...] = ()  # signals that ended ranks (9 for kill -9), without those that we sent


def run_local(
    arguments: Sequence[str],
    ranks: int,
    *,
    work: Callable[[], int] | None = None,
    run_folder: Path | None = None,
    timeout: float = 60.0,
) -> int:
    """`forgepress *arguments` on `ranks` local processes; returns the exit code for the shell.

    work:       what such a process does once it has its environment: where this process can be copied, its copies do
                that instead of a new interpreter each.
    run_folder: where logs/rank-N.log go (None: no logs, only rank 0's output is seen).
    timeout:    seconds without progress after the first step that count as a hang (`parallel.timeout`).
    Ctrl-C asks the ranks to save and stop (75); a second one kills them (130). SIGTERM, SIGHUP and SIGUSR1 go on to
    the ranks. Whatever happens, also kill -9 of this process, no rank stays behind.
    """
    new = [sys.executable, "-m", "forgepress.launch", *arguments]
    command = work if work is not None and can_fork() else new
    session = uuid.uuid4().hex[:12]
    local = LocalRanks(command, ranks, run_folder=run_folder, timeout=timeout, session=session)
    outcome = local.run()
    if run_folder and outcome.exit_code not in (0, PREEMPTED):
        from ..trainer.history import write_end  # rank 0 may have been killed, or know only a consequence

        reason = outcome.message.removeprefix("error: ") or "stopped before a checkpoint could be saved"
        with suppress(OSError):
            write_end(run_folder, session, "failed", reason)
    return outcome.exit_code


def hold_port() -> socket.socket:
    """A TCP port of this machine for rank 0's store: `getsockname()[1]`, nobody else's while the socket is open.

    Rank 0 begins to listen seconds later. Bound, and open for reuse, the port is not given to another process until
    then, while one that names it can have it.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


class LocalRanks:
    """`ranks` processes of one command, or copies of this one. `run()` starts them and returns when none is left."""

    def __init__(
        self,
        command: Sequence[str] | Callable[[], int],
        ranks: int,
        *,
        run_folder: Path | None = None,
        timeout: float = 60.0,
        silence: float = SILENCE,
        quiet: bool = False,
        session: str = "",
    ) -> None:
        self._session = session  # what the ranks call this start in the run's history
        self._command, self._ranks, self._run_folder = command, ranks, run_folder
        self._timeout, self._silence, self._quiet = timeout, silence, quiet
        self._processes: list[Process] = []
        self._handlers: dict[int, Any] = {}
        self._failures: list[Failure] = []  # in the order in which they were noticed
        self._asked_to_stop = 0  # 0; 1 after SIGTERM or Ctrl-C; 2 after another Ctrl-C
        self._stop_code = 130  # exit code if the ranks end without a save: 128 + the signal
        self._kill_now = threading.Event()
        self._host = socket.gethostname()
        self._started = self._looked = 0.0

    def run(self) -> Outcome:
        """Starts the ranks, watches them to the end and says what happened. Nothing is left running after it."""
        self._board = Board(self._ranks)
        self._handlers = self._take_signals()
        held = hold_port()
        try:
            self._start(held.getsockname()[1])
            verdict = self._watch()
            return self._conclude(verdict)
        finally:
            self._kill()
            held.close()
            for name, handler in self._handlers.items():
                signal.signal(name, handler)
            self._board.close()

    def kill(self) -> None:
        """From another thread: end all ranks now."""
        self._kill_now.set()

    def _start(self, port: int) -> None:
        self._started = self._looked = time.monotonic()
        for rank in range(self._ranks):
            environment = child_environment(rank, self._ranks, port)
            environment |= {
                "FORGEPRESS_PARENT": str(os.getpid()),
                "FORGEPRESS_BOARD": str(self._board.descriptor),
            }
            if self._session:
                environment["FORGEPRESS_SESSION"] = self._session
            output = self._output(rank)
            if output is not None and self._run_folder:
                environment["FORGEPRESS_HAS_LOG"] = "1"
            self._processes.append(self._begin(environment, output))
            if output is not None:
                output.close()
        if self._asked_to_stop:  # while we were starting them
            self._pass_on(signal.SIGTERM)

    def _begin(self, environment: dict[str, str], output: TextIO | None) -> Process:
        descriptor = None if output is None else output.fileno()
        if callable(self._command):
            return Forked(self._command, environment=environment, output=descriptor, handlers=self._handlers)
        return subprocess.Popen(
            self._command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,  # Ctrl-C reaches us alone; and killing the group kills helpers too
            pass_fds=[self._board.descriptor],
        )

    def _output(self, rank: int) -> TextIO | None:
        """Rank 0 inherits the terminal (and copies itself into its log); the others have their log alone."""
        if rank == 0 and not self._quiet:
            return None
        return open_log(self._run_folder, rank) if self._run_folder else open(os.devnull, "w")

    def _watch(self) -> Verdict | None:
        """Until all ranks have ended well (None) or a verdict is reached."""
        first_failure = None
        while True:
            running = self._collect()
            if self._kill_now.is_set() or self._asked_to_stop > 1:
                return None
            if self._failures:
                first_failure = first_failure or time.monotonic()
                waited = time.monotonic() - first_failure
                known = {failure.rank for failure in self._failures}
                if waited >= grace(self._failures) or all(process in known for process in running):
                    return blame(self._failures, self._standings())
            elif not running:
                return None
            else:
                verdict = judge(self._standings(), timeout=self._timeout, silence=self._silence)
                if verdict:
                    return verdict
            self._kill_now.wait(_POLL)

    def _collect(self) -> list[int]:
        """Notices failures, by record and by exit; returns the ranks that still run."""
        now, running = time.monotonic(), []
        if (
            now - self._looked > 2.0
        ):  # this machine slept or we were stopped: the ranks' silence means nothing
            self._started = now
        self._looked = now
        known = {failure.rank for failure in self._failures}
        for rank, process in enumerate(self._processes):
            ended = _has_ended(process)
            if not ended:
                running.append(rank)
            standing = self._board.pages[rank].read(host=self._host)
            if rank not in known and (failure := self._failure_of(standing, process if ended else None)):
                self._failures.append(failure)
        return running

    def _failure_of(self, standing: Standing, ended: Process | None) -> Failure | None:
        if standing.status == FAILED and standing.failure:
            return standing.failure
        if ended is None or ended.returncode in (0, PREEMPTED):
            return None
        if self._asked_to_stop and -ended.returncode in _STOPPING:
            return None  # our own signal, before the rank could take it
        return Failure(
            rank=standing.rank,
            host=self._host,
            step=standing.step,
            where=standing.where,
            cause=exit_cause(ended.returncode),
            exit_code=ended.returncode if ended.returncode > 0 else 1,
            consequence=-ended.returncode == signal.SIGABRT,  # libraries abort when they have lost a peer
        )

    def _standings(self) -> list[Standing]:
        standings = []
        for page, process in zip(self._board.pages, self._processes, strict=True):
            standing = page.read(host=self._host, started=self._started)
            if process.returncode is not None and standing.status == RUNNING:
                standing = replace(standing, status=FAILED if process.returncode not in (0, PREEMPTED) else 1)
            elif standing.silent >= min(
                self._silence, 2.0
            ):  # looking costs a file: only where something is odd
                standing = replace(standing, stopped=process_is_stopped(process.pid))
            else:
                standing = replace(standing, stopped=False)
            standings.append(standing)
        return standings

    def _conclude(self, verdict: Verdict | None) -> Outcome:
        standings = self._standings()
        codes = [process.returncode for process in self._processes]
        signals = tuple(-code for code in codes if code is not None and code < 0)
        if verdict and verdict.hang:
            self._dump_stacks()
        self._kill()  # before anything is said: the message is the last line
        if self._kill_now.is_set():
            return Outcome(exit_code=137, signals=signals)
        if self._asked_to_stop > 1 or (self._asked_to_stop and set(signals) & _STOPPING):
            self._say("error: stopped before a checkpoint could be saved")
            return Outcome(exit_code=self._stop_code, signals=signals)
        if verdict is None:
            return Outcome(exit_code=PREEMPTED if PREEMPTED in codes else 0)
        text = message(verdict, standings, logs=self._logs(verdict))
        if os.environ.get("FORGEPRESS_DEBUG") == "1" and verdict.failure.traceback:
            text += "\n" + verdict.failure.traceback
        self._say(text)
        return Outcome(
            exit_code=verdict.failure.exit_code or 1, verdict=verdict, message=text, signals=signals
        )

    def _logs(self, verdict: Verdict) -> str:
        if not self._run_folder:
            return ""
        log = log_path(self._run_folder, verdict.failure.rank)
        return f"{log.parent}{os.sep}rank-*.log have every rank's stack" if verdict.hang else str(log)

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def _dump_stacks(self) -> None:
        for rank, process in enumerate(self._processes):
            # A rank that has not come to life yet has no handler: the signal would end it, which is about to happen.
            if self._run_folder and self._board.pages[rank].read().process and process.returncode is None:
                process.send_signal(signal.SIGUSR2)
        time.sleep(0.3)

    def _kill(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                _kill_group(process.pid)
                process.wait()

    def _take_signals(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        names = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
        wanted = [
            name for name in names if signal.getsignal(name) is not signal.SIG_IGN
        ]  # nohup stays in force
        return {int(name): signal.signal(name, self._on_signal) for name in wanted}

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            self._asked_to_stop += 1
            if self._asked_to_stop > 1:
                return
            # os.write: print may be at work on the same stream in the code that this handler interrupts
            os.write(
                2, b"\nstopping: the ranks save a checkpoint first; press Ctrl-C again to stop at once\n"
            )
        elif not self._asked_to_stop:
            self._asked_to_stop, self._stop_code = 1, 128 + number
        self._pass_on(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.send_signal(number)


_STOPPING = {signal.SIGTERM, signal.SIGUSR1}  # what we pass on: it ends a rank that cannot take it yet


def exit_cause(code: int) -> str:
    """What an exit code without a record says: the signal by name, or the number."""
    if code >= 0:
        return f"the process ended with exit code {code} and said no more"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (kill -9, or the system ran out of memory)" if -code == signal.SIGKILL else ""
    return f"the process was killed by {name}{hint}"


def _has_ended(process: Process) -> bool:
    """Has it? If so its helpers are killed before its number is given back, so that no other group can be hit."""
    if process.returncode is not None:
        return True
    if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return False
    _kill_group(process.pid)
    process.wait()
    return True


def _kill_group(process: int) -> None:
    try:
        os.killpg(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says "permission" for a group of zombies
        os.kill(process, signal.SIGKILL)
