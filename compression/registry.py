"""Techniques by name: the folder is the registry, one file one technique."""

from __future__ import annotations

import dataclasses
import difflib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from ..errors import ConfigError
from .technique import Technique


@cache
def techniques() -> dict[str, type[Technique]]:
    """All built-in techniques: name (``pruning.magnitude``: the file's path) → class. cost: imports all of them."""
    found = {name: _class_in(name) for name in _files()}
    return {name: kind for name, kind in found.items() if kind is not None}


@cache
def _files() -> tuple[str, ...]:
    """Names of the files that may be techniques; nothing is imported."""
    package = import_module(__package__ or "")
    return tuple(
        sorted(
            f"{folder.name}.{file.name}"
            for folder in pkgutil.iter_modules(package.__path__)
            if folder.ispkg and not folder.name.startswith("_")
            for file in pkgutil.iter_modules([f"{path}/{folder.name}" for path in package.__path__])
            if not file.name.startswith("_")
        )
    )


@cache
def _class_in(name: str) -> type[Technique] | None:
    """The technique of one file; None where the file is none."""
    module = import_module(f"{__package__}.{name}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Technique) and value.__module__ == module.__name__
    ]
    return own[-1] if own else None


def technique_class(name: str) -> type[Technique]:
    """The class that ``name`` means: a built-in name, or ``package.module:Class`` for one of your own.

    raises: ConfigError with the nearest known name.   cost: imports this one alone.
    """
    kind = _class_in(name) if name in _files() else None
    if kind is not None:
        return kind
    if ":" in name:
        return _own(name)
    near = difflib.get_close_matches(name, techniques(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"technique {name!r} is not known; {hint}want one of {', '.join(techniques())}, or 'package.module:Class'"
    )


def _own(name: str) -> type[Technique]:
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"technique {name!r} cannot be imported: {error}; want 'package.module:Class'"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Technique)):
        raise ConfigError(f"technique {name!r} is {found!r}; want a subclass of forgepress.Technique")
    return found


def name_of(technique: type[Technique]) -> str:
    """The name under which ``technique`` is asked for in a config."""
    name = technique.__module__.removeprefix(f"{__package__}.")
    if name in _files() and _class_in(name) is technique:
        return name
    return f"{technique.__module__}:{technique.__qualname__}"


def build(name: str, settings: Mapping[str, Any]) -> Technique:
    """The technique ``name`` with its settings, checked.

    raises: ConfigError naming every wrong field: what was given, what is wanted, the nearest known field.
    """
    kind = technique_class(name)
    try:
        return _adapter(kind).validate_python(dict(settings))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(name, kind, e) for e in error.errors())) from error


@cache
def _adapter(kind: type[Technique]) -> TypeAdapter[Any]:
    with_config(ConfigDict(extra="forbid"))(kind)
    return TypeAdapter(kind)


def _explain(name: str, kind: type[Technique], error: Any) -> str:
    fields = [field.name for field in dataclasses.fields(kind)]
    field = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(field, fields, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{name}.{field}: unknown setting; {hint}settings: {', '.join(fields)}"
    if not field:
        return f"{name}: {error['msg'].removeprefix('Value error, ')}"
    return f"{name}.{field}: {error['msg']} (given {error['input']!r})"
