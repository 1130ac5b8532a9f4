"""history.jsonl: one line for each start of a run and one for its end; read without torch, also while it goes on."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import ForgepressError, Preempted
from .provenance import provenance
from .secrets import hide_secrets
from .trackers.jsonl import read_lines

FILE = "history.jsonl"
SESSION = (
    "FORGEPRESS_SESSION"  # the launcher's number for one start, so that it can write the end of a killed one
)


def session_id() -> str:
    """What all ranks (and a launcher above them) call this start of the run."""
    given = os.environ
    if given.get(SESSION):
        return given[SESSION]
    if given.get("TORCHELASTIC_RUN_ID"):  # before SLURM: one step may hold several starts of torchrun's
        restart = given.get("TORCHELASTIC_RESTART_COUNT", 0)
        return f"torchrun-{given['TORCHELASTIC_RUN_ID']}-{given.get('MASTER_PORT', 0)}-{restart}"
    if given.get("SLURM_JOB_ID") and given.get("SLURM_STEP_ID"):
        return f"slurm-{given['SLURM_JOB_ID']}.{given['SLURM_STEP_ID']}-{given.get('SLURM_RESTART_COUNT', 0)}"
    return uuid.uuid4().hex[:12]


@contextmanager
def recorded(
    folder: Path, about: dict[str, Any], position: Callable[[], int], *, alone: bool
) -> Iterator[None]:
    """Writes the start of a session into the run `folder` and, where the block ends by itself, its end.

    about:    seed, mesh, hosts, first and last step: joins what `provenance` knows.
    position: the optimizer steps finished, asked at the end.
    alone:    one process; else an error that no person can mend is left to the launcher, which knows its cause.
    """
    session = session_id()
    _append(folder, {"kind": "start", "session": session, **about, **provenance()})
    state, reason = "finished", ""
    try:
        yield
    except Preempted as stopped:
        state, reason = "preempted", str(stopped)
        raise
    except BaseException as error:
        state, reason = "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, ForgepressError):
            reason = str(error)
        elif not alone:
            state = ""
        raise
    finally:
        if state:
            with suppress(OSError):  # a full disk must not hide the error that is on its way
                write_end(folder, session, state, reason, step=position())


def write_end(folder: Path, session: str, state: str, reason: str = "", *, step: int | None = None) -> None:
    """Adds how a session ended: finished, failed or preempted, and why. Nothing where it never began in `folder`."""
    if any(line.get("session") == session for line in starts(folder)):
        reason = hide_secrets(reason.strip().splitlines()[0]) if reason.strip() else ""
        _append(folder, {"kind": "end", "session": session, "state": state, "reason": reason, "step": step})


def starts(folder: Path) -> list[dict[str, Any]]:
    """The run's sessions in order, each with its last `end` (None while none was written)."""
    found: list[dict[str, Any]] = []
    for line in read_lines(folder / FILE):
        if line.get("kind") == "start":
            found.append({**line, "end": None})
        for start in reversed(found):
            if line.get("kind") == "end" and start["session"] == line.get("session"):
                start["end"] = line
                break
    return found


def _append(folder: Path, line: dict[str, Any]) -> None:
    line = {"at": datetime.now().astimezone().isoformat(timespec="seconds"), **line}
    with (folder / FILE).open("ab") as file:  # one write: lines of two processes do not mix
        file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
