"""One run folder, one run at a time: a lock that the system itself lets go when its holder dies."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ConfigError

FILE = ".lock"
PATIENCE = 2.0  # seconds that a lock may still be held: a run that was just killed is being cleared away
PATIENCE_AFTER_RESTART = (
    60.0  # the same where SLURM or torchrun starts a run again: ranks of the last start may live on
)


class RunLock:
    """The lock of one run folder, held from ``acquire`` to ``release`` or to the end of the process."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._file: BinaryIO | None = None

    def acquire(self, patience: float | None = None) -> None:
        """Takes the lock; waits ``patience`` seconds for another to let it go.

        raises: ConfigError naming who holds it.
        """
        file = self._path.open("a+b")
        end = time.monotonic() + (_patience() if patience is None else patience)
        while not _lock(file):
            if time.monotonic() >= end:
                file.close()
                who = holder_text(_read(self._path))
                raise ConfigError(
                    f"{self._path.parent}: a run of this name is going on{who}; wait for its end, stop it, or take "
                    "another name for this run (name=…)"
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(json.dumps(_me()).encode())
        file.flush()
        self._file = file

    def release(self) -> None:
        """Lets it go; calling it twice is harmless."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock of a run folder: {"host", "process", "job", "since"}; None where nobody does."""
    path = folder / FILE
    try:
        with path.open("r+b") as file:
            return None if _lock(file) else _read(path)
    except OSError:
        return None  # no such file, or not ours to open


def holder_text(who: dict[str, Any]) -> str:
    """ " (process 12 on node1, job 7, since …)" or nothing."""
    if not who:
        return ""
    job = f", job {who['job']}" if who.get("job") else ""
    return f" (process {who['process']} on {who['host']}{job}, since {who['since']})"


def _me() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    job = os.environ.get("SLURM_JOB_ID")
    return {"host": socket.gethostname(), "process": os.getpid(), "job": job, "since": since}


def _patience() -> float:
    again = any(os.environ.get(f"{who}_RESTART_COUNT", "0") != "0" for who in ("SLURM", "TORCHELASTIC"))
    return PATIENCE_AFTER_RESTART if again else PATIENCE


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes() or b"{}")
    except (OSError, ValueError):
        return {}


def _lock(file: BinaryIO) -> bool:
    """True where the lock is ours now, or where this file system knows no locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK, ENOTSUP: a shared file system mounted without locks
        return True
    return True
