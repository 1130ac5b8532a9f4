"""`key.sub=value` from the command line, written into the merged config; list indices are keys too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from .config_errors import Path, Problem, show, written
from .config_yaml import parse_value


def apply_overrides(
    config: dict[str, Any], overrides: Sequence[str], places: dict[Path, str]
) -> list[Problem]:
    """Set each override in `config` (in place, in order) and note its text under its path in `places`.

    A mapping or list replaces what was there. An index one past the end of a list appends. What cannot be
    set is returned as a problem; a key that no config has is left for the check of the whole config.
    """
    problems = []
    for text in overrides:
        path: Path = ()
        try:
            path, value = _read(text)
            _set(config, path, value)
        except ValueError as error:
            problems.append(Problem(path=path, place=f"override {text}", message=str(error)))
            continue
        # A new value hides the places of everything that was below it.
        for old in [key for key in places if key[: len(path)] == path]:
            del places[old]
        places[path] = text
    return problems


def _read(text: str) -> tuple[Path, Any]:
    """The path and value of one override; the value is read as YAML."""
    name, equals, given = text.partition("=")
    keys = name.strip().replace("[", ".").replace("]", "").split(".")
    if not equals or not all(keys):
        raise ValueError(f"given {show(text)}; want key=value, for example optimizer.lr=0.01")
    try:
        value = parse_value(given)
    except yaml.YAMLError as error:
        raise ValueError(f"the value is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    return tuple(int(key) if key.isdigit() else key for key in keys), value


def _set(config: dict[str, Any], path: Path, value: Any) -> None:
    holder: Any = config
    for depth, key in enumerate(path):
        last = depth == len(path) - 1
        above = written(path[:depth])
        if isinstance(holder, list):
            if not isinstance(key, int) or key > len(holder):
                raise ValueError(
                    f"{above} is a list with {len(holder)} entries; want an index from 0 to {len(holder)}"
                )
            if key == len(holder):
                holder.append(None)
        elif isinstance(holder, dict):
            key = str(key)
        else:
            raise ValueError(f"{above} is {show(holder)}, not a mapping; set {above} as a whole")
        if last:
            holder[key] = value
            return
        below = holder[key] if isinstance(holder, list) else holder.get(key)
        if below is None:
            below = [] if path[depth + 1] == 0 else {}
            holder[key] = below
        holder = below
