"""What differs between two configs, for the resume of a run with another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .config import RunConfig
from .config_errors import Path, show, written

ABSENT = "(absent)"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One key with two values; `ABSENT` where one config has no such key."""

    path: Path
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{written(self.path)}: {show(self.before)} → {show(self.after)}"


def diff(before: RunConfig, after: RunConfig, *, under: Sequence[str] = ()) -> tuple[Difference, ...]:
    """Every key whose value differs, in key order; `under` keeps those below the given top-level words."""
    found = _walk(before.model_dump(mode="json"), after.model_dump(mode="json"), ())
    return tuple(each for each in found if not under or each.path[0] in under)


def _walk(before: Any, after: Any, path: Path) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _walk(before.get(key, ABSENT), after.get(key, ABSENT), (*path, key))
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            left = before[index] if index < len(before) else ABSENT
            right = after[index] if index < len(after) else ABSENT
            yield from _walk(left, right, (*path, index))
    elif before != after:
        yield Difference(path=path, before=before, after=after)
