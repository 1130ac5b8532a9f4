"""A technique's settings in a config against its dataclass: every wrong field, with the key to mend."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError
from .config_errors import Path, message_of, nearest

LATER = {"techniques": "later"}
"""pydantic's context for a config whose techniques somebody else will check: the one process that imports no torch."""


def check_technique(name: str, settings: dict[str, Any]) -> list[tuple[Path, str]]:
    """What is wrong, as (path below the entry, message); [] when it can be built. cost: imports torch."""
    from ..compression import registry

    try:
        kind = registry.technique_class(name)
    except ConfigError as error:
        known = registry.techniques()
        own = ":" in name  # package.module:Class of somebody's own: the import's error says more than a list
        return [(("name",), str(error) if own else f"no technique is called {name!r}{nearest(name, known)}")]
    try:
        registry.build(name, settings)
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, ValidationError):
            return _problems(cause, name, settings, tuple(field.name for field in dataclasses.fields(kind)))
        return [(_mentioned(str(error), settings), str(error))]
    return []


def _problems(
    error: ValidationError, name: str, settings: dict[str, Any], fields: tuple[str, ...]
) -> list[tuple[Path, str]]:
    found: dict[Path, str] = {}  # one message for each key: a union reports every alternative by itself
    for detail in error.errors(include_url=False):
        kind, path = detail["type"], tuple(detail["loc"][:1])
        if kind == "unexpected_keyword_argument":
            message = f"{name} has no such setting{nearest(str(path[0]), fields)}"
        elif kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
            message = f"required by {name}, but not given"
        elif kind in ("value_error", "assertion_error"):
            message = f"{name}: {detail.get('ctx', {}).get('error')}"
            path = path or _mentioned(message, settings)
        else:
            message = message_of(detail)
        found.setdefault(path, message)
    return list(found.items())


def _mentioned(message: str, settings: dict[str, Any]) -> Path:
    """The setting that a technique's own error is about: the first one that the message names."""
    found = sorted((message.find(key), key) for key in settings if key in message)
    return (found[0][1],) if found else ()
