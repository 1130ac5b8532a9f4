"""Texts about techniques, made from their classes: docstring and dataclass fields."""

import dataclasses
import inspect
from difflib import get_close_matches

from ..compression.registry import techniques
from ..errors import ConfigError


def table_of_techniques() -> str:
    """One line per technique: name and the first line of its docstring."""
    known = techniques()
    width = max((len(name) for name in known), default=0)
    return "\n".join(f"{name:<{width}}  {_first_line(kind)}" for name, kind in sorted(known.items()))


def describe_technique(name: str) -> str:
    """The whole docstring and every setting with type and default; raises ConfigError with the nearest name."""
    known = techniques()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"there is no technique {name!r}; {hint}")
    kind = known[name]
    settings = [_setting(field) for field in dataclasses.fields(kind) if field.init]
    return "\n".join([name, "", inspect.getdoc(kind) or "", "", "settings:", *settings])


def _setting(field: dataclasses.Field) -> str:
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    if field.default is not dataclasses.MISSING:
        return f"  {field.name}: {kind} = {field.default!r}"
    if field.default_factory is not dataclasses.MISSING:
        return f"  {field.name}: {kind} = {field.default_factory()!r}"
    return f"  {field.name}: {kind} (needed)"


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]
