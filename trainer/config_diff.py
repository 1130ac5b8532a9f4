"""What differs between two configs, for the resume of a run with another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


_DECIDING = ("seed", "model", "data", "optimizer", "precision", "phases")
_HARMLESS = (("data", "prefetch"),)


def deciding_differences(written: Mapping[str, Any], config: RunConfig) -> tuple[Difference, ...]:
    """What differs between the config.yaml of a run folder and `config` among the keys that decide the result.

    Not the mesh, tracking, evaluation, checkpoints and exports, and no key that the version before did not know.
    """
    before = {key: written[key] for key in _DECIDING if key in written}
    after = config.model_dump(mode="json", include=set(before))
    found = _walk(before, after, ())
    return tuple(each for each in found if each.before != ABSENT and each.path not in _HARMLESS)


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
