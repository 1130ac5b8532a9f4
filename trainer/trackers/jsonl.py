"""metrics.jsonl: one JSON object per line, complete after every line. The other trackers can be rebuilt from it."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..jsonable import plain


class JsonLines:
    """Appends to `path`. A new run keeps an older file as *.previous.jsonl; a resumed one goes on behind its step.

    resume_step: the optimizer step that the run goes on from; lines of later steps are dropped, because those
    steps are done again. None: a new run.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if resume_step is None:
                os.replace(path, path.with_suffix(".previous.jsonl"))
            else:
                drop_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8", buffering=1)  # each line reaches the file at once

    def log(self, values: Mapping[str, Any]) -> None:
        """Writes one line. raises: CheckpointError where the disk is full. cost: waits for tensors among the values."""
        line = json.dumps(plain(values), allow_nan=False, ensure_ascii=False) + "\n"
        try:
            self._file.write(line)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({error.strerror or error}); free space there and start the run "
                "again: it goes on from its newest checkpoint"
            ) from error

    def close(self) -> None:
        """Closes the file; calling it twice is harmless."""
        self._file.close()


def drop_after(path: Path, step: int) -> None:
    """Rewrites `path` without the lines of steps after `step` and without damaged lines; others keep their bytes."""
    partial = path.with_name(f".{path.name}.partial")
    with path.open("rb") as old, partial.open("wb") as new:
        for line in old:
            values = _parsed(line)
            if values is not None and int(values.get("step") or 0) <= step:
                new.write(line)
    os.replace(partial, path)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file in order; damaged ones (a process killed while writing) are passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            values = _parsed(line)
            if values is not None:
                yield values


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):  # cut off: even where it parses, a number may have lost digits
        return None
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
