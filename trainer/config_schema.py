"""The config as JSON Schema, for editors: all keys, all techniques with their fields, the built-in models."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from .config import RunConfig
from .config_values import MODEL_KINDS, SOURCE_KINDS


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a config file. cost: imports torch, and every technique and built-in model."""
    from ..compression.registry import techniques
    from .models import model_names

    schema = RunConfig.model_json_schema()
    definitions = schema["$defs"]
    definitions.pop("TechniqueConfig")
    entries = [technique_schema(name, kind) for name, kind in techniques().items()]
    definitions["PhaseConfig"]["properties"]["techniques"]["items"] = {"oneOf": entries}
    schema["properties"]["model"] |= _name_or_mapping(model_names(), MODEL_KINDS)
    definitions["DataConfig"]["properties"]["source"] |= _name_or_mapping((), SOURCE_KINDS)
    export = schema["properties"]["export"]
    formats = definitions["ExportConfig"]["properties"]["format"]["enum"]
    export["items"] = {"anyOf": [export["items"], {"enum": formats}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Forgepress run"}


def technique_schema(name: str, technique: type) -> dict[str, Any]:
    """The schema of one flat technique entry: its dataclass' fields with types, defaults and docstrings."""
    hints, said = get_type_hints(technique, include_extras=True), field_docs(technique)
    properties: dict[str, Any] = {"name": {"const": name}}
    required = ["name"]
    for field in dataclasses.fields(technique):
        if not field.init:
            continue
        entry = _type_schema(hints[field.name])
        if field.default is not dataclasses.MISSING:
            entry["default"] = field.default
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        if field.name in said:
            entry["description"] = said[field.name]
        properties[field.name] = entry
    return {
        "type": "object",
        "title": name,
        "description": inspect.getdoc(technique) or "",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def field_docs(kind: type) -> dict[str, str]:
    """Field → the docstring below it, for a dataclass and its bases; {} where there is no source."""
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, below in pairwise(body):
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                name = ast.unparse(field.target) if isinstance(field, ast.AnnAssign) else ""
                said[name] = inspect.cleandoc(str(below.value.value))
    said.pop("", None)
    return said


def _type_schema(kind: Any) -> dict[str, Any]:
    try:
        return TypeAdapter(kind).json_schema()
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return {}  # a type of somebody's own: anything may stand there


def _name_or_mapping(names: Sequence[str], kinds: Mapping[str, tuple[str, ...] | None]) -> dict[str, Any]:
    """A name, or a mapping with exactly one of `kinds`; the other keys as `config_values` checks them."""
    text: dict[str, Any] = {"enum": list(names)} if names else {"type": "string"}
    mappings = [
        {
            "type": "object",
            "properties": {kind: text if kind == "name" else {}, **{key: {} for key in others or ()}},
            "required": [kind],
            "additionalProperties": others is None,
        }
        for kind, others in kinds.items()
    ]
    return {"anyOf": [text, *mappings]}
