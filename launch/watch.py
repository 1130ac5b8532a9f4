"""What a rank tells about itself: where it stands, that it lives, why it failed.

The trainer calls `watch.beat(step, where)` as often as it likes. `Watch` itself does nothing (one process, no
launcher); `LocalWatch` writes to the board that our own launcher reads; `StoreWatch` (store_watch.py) speaks
through torch's store where nobody of ours stands above the ranks (torchrun, SLURM).
"""

import faulthandler
import os
import re
import signal
import socket
import threading
import traceback
from pathlib import Path
from typing import TextIO

from ..errors import ForgepressError
from .board import FINISHED, Failure, Page

SILENCE = 10.0  # seconds without a sign of life after which a stopped process or a lost host counts as dead
SIGN_OF_LIFE = 0.5  # seconds between two signs of life

# What a rank sees when it has lost its peer: the consequence of a failure elsewhere, not a cause.
_CONSEQUENCE = re.compile(
    r"connection (closed|reset|refused|was closed|lost)|broken pipe|remote process (exited|has terminated)"
    r"|closed by (remote )?peer|socket timeout|timed out waiting .*(recv|send)|failed to (recv|send|connect)"
    r"|gloo/transport|sendbytes failed|recvvalue failed|store.*(timeout|timed out)|wait timeout|ncclremoteerror"
    r"|ncclsystemerror|communicator was aborted|collective operation timeout",
    re.IGNORECASE,
)


class Watch:
    """Does nothing: a single process with nobody to tell. The base of the real ones."""

    def beat(self, step: int, where: str, allow: float = 0.0) -> None:
        """This rank makes progress.

        step:  optimizer steps finished so far.
        where: phase of the step: "data", "forward", "backward", "optimizer", "evaluate", "checkpoint", … (24 bytes).
        allow: seconds that may pass until the next beat; 0 = the run's usual limit (`parallel.timeout`).
        cost:  under 1 µs: a store into memory.
        """

    def failed(self, error: BaseException) -> None:
        """Records why this rank fails; called once, before the process ends. Repeats are ignored."""

    def close(self) -> None:
        """This rank has finished well."""


class LocalWatch(Watch):
    """Writes to this rank's page of the launcher's board; a daemon thread adds signs of life."""

    def __init__(self, page: Page, *, parent: int = 0) -> None:
        self.page = page
        self.beat = page.beat  # one call less on the hot path
        self._parent = parent
        self._failed = False
        self._closed = threading.Event()
        page.alive()
        threading.Thread(target=self._live, name="forgepress-alive", daemon=True).start()

    def failed(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self.page.fail(describe(error, self.page))

    def close(self) -> None:
        self._closed.set()
        self.page.set_status(FINISHED)

    def _live(self) -> None:
        while not self._closed.wait(SIGN_OF_LIFE):
            # Where the system cannot tie us to the parent's life (not Linux) this ends an orphan.
            if self._parent and os.getppid() != self._parent:
                os.killpg(os.getpgrp(), signal.SIGKILL)
            self.page.alive()


def describe(error: BaseException, page: Page) -> Failure:
    """The failure record of `error` on this rank: one line with the innermost frame, or a ForgepressError's message."""
    standing = page.read()
    expected = isinstance(error, ForgepressError)
    return Failure(
        rank=page.rank,
        host=socket.gethostname(),
        step=standing.step,
        where=standing.where,
        cause=str(error) if expected else cause_line(error),
        exit_code=exit_code_of(error),
        expected=expected,
        consequence=not expected and is_consequence(error),
        traceback="".join(traceback.format_exception(error)),
    )


def cause_line(error: BaseException) -> str:
    """ "ValueError: message (file.py:41 in function)" on one line."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return text
    # A frame inside torch says little: the innermost one outside installed libraries is where to look.
    own = [
        frame
        for frame in frames
        if not re.search(r"(site|dist)-packages|[/\\]python3\.\d+[/\\]|<frozen", frame.filename)
    ]
    frame = (own or frames)[-1]
    return f"{text} ({Path(frame.filename).name}:{frame.lineno} in {frame.name})"


def is_consequence(error: BaseException) -> bool:
    """Does this error only say that another rank has gone?"""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"DistNetworkError", "DistBackendError", "DistStoreError"}:
        return True
    return isinstance(error, (ConnectionError, RuntimeError)) and bool(_CONSEQUENCE.search(str(error)))


def exit_code_of(error: BaseException) -> int:
    """The process exit code for an error: the ForgepressError's own, 130 for Ctrl-C, else 1."""
    if isinstance(error, ForgepressError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1


def dump_stacks_on_signal(log: TextIO) -> None:
    """SIGUSR2 writes every thread's stack to `log`, even while the main thread is stuck inside a collective."""
    faulthandler.enable(log)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR2, file=log, all_threads=True)
