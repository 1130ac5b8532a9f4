"""One log file per rank: logs/rank-N.log. Only rank 0 also speaks to the terminal."""

import logging
import sys
from pathlib import Path

_NAMES = ("forgepress", "py.warnings")
_MARK = "_forgepress_run"  # handlers that were added here, so that only these are taken away again


def open_logs(run_folder: str | Path, rank: int = 0, *, level: int = logging.INFO) -> logging.Logger:
    """Sends the project's log records and Python's warnings to `<run_folder>/logs/rank-<rank>.log`.

    The file is appended to, so that a resumed run keeps what was before. Rank 0 also prints warnings and errors to
    stderr; other ranks print nothing. A second call replaces the first. returns: the project's logger.
    """
    close_logs()
    path = Path(run_folder) / "logs" / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setLevel(level)
    to_file.setFormatter(
        logging.Formatter(
            f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z"
        )
    )
    handlers: list[logging.Handler] = [to_file]
    if rank == 0:
        to_terminal = logging.StreamHandler(sys.stderr)
        to_terminal.setLevel(logging.WARNING)
        to_terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        handlers.append(to_terminal)
    logging.captureWarnings(True)
    for name in _NAMES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = (
            False  # a root logger set up by a library would print every line again, on every rank
        )
        for handler in handlers:
            setattr(handler, _MARK, True)
            logger.addHandler(handler)
    return logging.getLogger("forgepress")


def close_logs() -> None:
    """Closes what `open_logs` opened and puts the loggers back; harmless when nothing is open."""
    opened = False
    for name in _NAMES:
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if hasattr(handler, _MARK)]:
            opened = True
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    if opened:
        logging.captureWarnings(False)
