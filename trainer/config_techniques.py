"""A technique's settings in a config against its dataclass: every wrong field, with the key to mend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from ..errors import ConfigError
from .config_errors import Path, _messages, nearest


def check_technique(name: str, settings: dict[str, Any]) -> list[tuple[Path, str]]:
    """What is wrong, as (path below the entry, message); [] when it can be built. cost: imports torch."""
    from ..compression import registry

    known = registry.techniques()
    if name not in known:
        return [(("name",), f"no technique is called {name!r}{nearest(name, known)}")]
    fields = {field.name: field for field in dataclasses.fields(known[name]) if field.init}
    problems: list[tuple[Path, str]] = [
        ((key,), f"{name} has no such setting{nearest(key, fields)}") for key in settings if key not in fields
    ]
    problems += [
        ((key,), f"required by {name}, but not given") for key in _required(fields) if key not in settings
    ]
    types = field_types(known[name])
    for key in [key for key in settings if key in types]:
        problems += [((key, *below), message) for below, message in _type_problems(types[key], settings[key])]
    if problems:
        return problems
    try:
        registry.build(
            name, settings
        )  # the technique's own rules: ranges, and settings that exclude each other
    except (ConfigError, ValueError, TypeError) as error:
        return [(_mentioned(str(error), settings), str(error))]
    return []


def field_types(technique: type) -> dict[str, Any]:
    """Field → type of a technique's dataclass; a field whose type cannot be read is left out."""
    try:
        hints = get_type_hints(technique, include_extras=True)
    except (NameError, TypeError):
        return {}
    return {field.name: hints[field.name] for field in dataclasses.fields(technique) if field.init}


def adapter(kind: Any) -> TypeAdapter[Any] | None:
    """pydantic's check of one type; None for a type that it does not know."""
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=False))
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, TypeError):
        return None


def _required(fields: dict[str, Any]) -> Iterator[str]:
    for key, field in fields.items():
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield key


def _type_problems(kind: Any, value: Any) -> Iterator[tuple[Path, str]]:
    check = adapter(kind)
    if check is None:
        return
    try:
        check.validate_json(_as_json(value), strict=True)  # JSON mode: a list is a tuple, but "5" is not 5
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        for _, message in _messages({**detail, "input": value}, None):
            yield (), message
    except ValueError:
        return


def _as_json(value: Any) -> str:
    import json

    return json.dumps(value)


def _mentioned(message: str, settings: dict[str, Any]) -> Path:
    """The setting that a technique's own error is about: the first one that the message names."""
    found = sorted((message.find(key), key) for key in settings if key in message)
    return (found[0][1],) if found else ()
