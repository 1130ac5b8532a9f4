"""Texts about techniques for the terminal, made from their classes: docstring and dataclass fields."""

import dataclasses
import inspect

from ..compression.registry import technique_class, techniques


def table_of_techniques() -> str:
    """One line per technique: name and the first line of its docstring; then where each is proven."""
    known = techniques()
    width = max((len(name) for name in known), default=0)
    lines = [f"{name:<{width}}  {_first_line(kind)}" for name, kind in sorted(known.items())]
    return "\n".join([*lines, "", *_support()])


def _support() -> list[str]:
    """Where each technique is proven; places are numbered, for their names are long."""
    from ..trainer.support import table

    (_, *places), *rows = table()
    width = max((len(name) for name, *_ in rows), default=0)
    numbers = range(1, len(places) + 1)
    head = [f"proven on {number}: {place}" for number, place in zip(numbers, places, strict=True)]
    lines = [f"{'':<{width}}  {' '.join(f'{number:>2}' for number in numbers)}"]
    lines += [f"{name:<{width}}  {' '.join(f'{mark:>2}' for mark in marks)}" for name, *marks in rows]
    return [*head, *lines]


def describe_technique(name: str) -> str:
    """The whole docstring and every setting with type and default; raises ConfigError with the nearest name."""
    kind = technique_class(name)
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
