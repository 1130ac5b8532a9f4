"""Texts for the terminal: techniques (from docstring and dataclass fields) and the report of `check`."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from ..compression.registry import technique_class, techniques


def table_of_techniques() -> str:
    """One line per technique: name and the first line of its docstring."""
    known = techniques()
    width = max((len(name) for name in known), default=0)
    return "\n".join(f"{name:<{width}}  {_first_line(kind)}" for name, kind in sorted(known.items()))


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


def report_lines(report: Mapping[str, Any], indent: str = "") -> list[str]:
    """Plain values as indented lines, "name: value"; what is empty or not known is left out."""
    lines: list[str] = []
    for name, value in report.items():
        if value is None or value == () or value == [] or value == {} or value == "":
            continue
        label = indent + name.replace("_", " ")
        if isinstance(value, Mapping):
            lines.append(f"{label}: {_on_one_line(value)}")
        elif isinstance(value, (list, tuple)):
            lines.append(f"{label}:")
            lines += [
                f"{indent}  {_on_one_line(item) if isinstance(item, Mapping) else item}" for item in value
            ]
        else:
            lines.append(f"{label}: {_number(value)}")
    return lines


def _on_one_line(values: Mapping[str, Any]) -> str:
    parts = []
    for name, value in values.items():
        text = f"({_on_one_line(value)})" if isinstance(value, Mapping) else _number(value)
        parts.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(parts)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
