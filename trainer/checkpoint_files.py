"""Checkpoint folders on disk: committed whole or not at all, proven undamaged before they are trusted."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SAVING = ".saving"  # the suffix of a folder that is not yet a checkpoint
_MANIFEST = "manifest.json"
_BLOCK = 1 << 22


def commit(temporary: Path, final: Path, state: dict[str, Any]) -> None:
    """Turn a written folder into a checkpoint: add ``state.json`` and the manifest, flush, rename.

    The rename is the commit: a crash before it leaves the checkpoints that were there as they were.
    raises: OSError where the disk does not take it.
    """
    _write_json(temporary / "state.json", state)
    files = {
        p.name: [p.stat().st_size, checksum(p)] for p in sorted(temporary.iterdir()) if p.name != _MANIFEST
    }
    _write_json(temporary / _MANIFEST, files)
    flush(temporary)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    flush(final.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where every file is there and unchanged."""
    try:
        files = json.loads((folder / _MANIFEST).read_text())
        for name, (size, crc) in files.items():
            path = folder / name
            if not path.exists():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if checksum(path) != crc:
                return f"{name} has other content than was written"
        json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} or state.json cannot be read ({error})"
    return None


def steps_in(folder: Path) -> list[int]:
    """Steps of the committed checkpoints in ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    names = (p.name for p in folder.iterdir() if p.is_dir() and p.name.startswith("step-"))
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def tidy(folder: Path, newest: int, *, keep: int, spare: Iterable[int]) -> None:
    """Delete all but the ``keep`` checkpoints up to step ``newest`` and the steps in ``spare``.

    Later steps than ``newest``, the one just committed, are damaged ones that a resumed run has passed over: counted
    among those to keep, they would push out whole ones.
    """
    steps = steps_in(folder)
    passed_over = [step for step in steps if step > newest]
    old = [step for step in steps if step <= newest][:-keep]
    for step in [*passed_over, *(set(old) - set(spare))]:
        shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Delete what saves that were killed have left. Not while another process may be saving there."""
    for leftover in folder.glob(f"*{SAVING}"):
        shutil.rmtree(leftover, ignore_errors=True)


def checksum(path: Path) -> int:
    """CRC-32 of a file's content (it finds damage; it is no signature)."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def flush(folder: Path) -> None:
    """Have the file system write a folder's entries, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_json(path: Path, value: Any) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
