"""Every rank's output in a file of its own, without taking the terminal from the rank that has one."""

import re
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from ..errors import ConfigError

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_REDRAW = re.compile(
    r"\r|\x1b\[2K|\x1b\[\d*A"
)  # start of line, erase, cursor up: what came before is drawn over
_LONGEST = 8192  # characters of an unfinished line that are kept: a progress bar may never end its line


def log_path(run_folder: Path, rank: int) -> Path:
    """`runs/<name>/logs/rank-N.log`."""
    return run_folder / "logs" / f"rank-{rank}.log"


def open_log(run_folder: Path, rank: int) -> TextIO:
    """The rank's log, appended to (a resumed run goes on in it), with its folder made.

    raises: ConfigError where the run folder cannot be written.
    """
    path = log_path(run_folder, rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8", errors="replace", buffering=1)
    except OSError as error:
        raise ConfigError(
            f"checkpoint.folder: the run folder {run_folder} cannot be written ({error.strerror or error}); "
            "name a folder that can, or free space there"
        ) from error


def heading(rank: int, ranks: int, host: str, process: int) -> str:
    """The line that begins each start of a rank in its log."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return f"── {now} rank {rank} of {ranks} on {host}, process {process}\n"


class Tee:
    """A text stream that writes to the terminal and to a log; for everything else it is the terminal (`isatty`, …).

    The log gets whole lines as they look in the end: colours are dropped, and what a progress bar draws over is not
    written. Output that bypasses Python's streams (C++ libraries) reaches the terminal only.
    """

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal, self._log, self._line = terminal, log, ""

    def write(self, text: str) -> int:
        """Writes to both; the log waits for the end of the line."""
        written = self._terminal.write(text)
        *done, self._line = (self._line + text).split("\n")
        with suppress(
            OSError
        ):  # a full disk: what to do about it is said where it matters, at the checkpoint
            for line in done:
                self._log.write(_visible(line) + "\n")
        self._line = self._line[-_LONGEST:]
        return written

    def flush(self) -> None:
        """Flushes both; a line that has not ended yet stays out of the log."""
        self._terminal.flush()
        with suppress(OSError):
            self._log.flush()

    def close_line(self) -> None:
        """Writes what is left of an unfinished line; called once at the end."""
        if self._line:
            self._log.write(_visible(self._line) + "\n")
            self._line = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


def _visible(line: str) -> str:
    return _CONTROL.sub("", _REDRAW.split(line.rstrip("\r"))[-1])


def tee_output(log: TextIO) -> None:
    """From now on this process' stdout and stderr go to the log as well."""
    sys.stdout, sys.stderr = Tee(sys.stdout, log), Tee(sys.stderr, log)  # type: ignore[assignment]
