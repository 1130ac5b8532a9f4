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
    for depth, key in enumerate(path[:-1]):
        key = _slot(holder, key, path[:depth])
        if holder[key] is None:
            holder[key] = [] if path[depth + 1] == 0 else {}
        holder = holder[key]
    holder[_slot(holder, path[-1], path[:-1])] = value


def _slot(holder: Any, key: str | int, above: Path) -> Any:
    """`key` as it fits `holder`, where it now exists (None if it is new). raises: ValueError."""
    if isinstance(holder, dict):
        holder.setdefault(str(key), None)
        return str(key)
    where, rest = written(above), f"{show(holder)}, not a mapping"
    if not isinstance(holder, list):
        raise ValueError(f"{where} is {rest}; set {where} as a whole, for example {where}={{{key}: …}}")
    if not isinstance(key, int) or key > len(holder):
        size = len(holder)
        raise ValueError(
            f"{where} is a list with {size} entries; want an index from 0 to {size} ({size} appends)"
        )
    if key == len(holder):
        holder.append(None)
    return key
