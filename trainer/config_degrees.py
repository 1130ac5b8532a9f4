"""Degrees of the mesh that follow from the number of ranks: `replicate: auto`, `shard: auto`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainSerializer, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator

from .config_errors import refusal, show

AUTO = 0
"""How a degree that is not known yet is kept; nobody computes with it: `RunConfig.on` puts a number there."""


def _degree(value: Any, check: ValidatorFunctionWrapHandler) -> int:
    if value == "auto":
        return AUTO
    if isinstance(value, str):
        raise refusal(((), f"given {show(value)}; want a whole number, or auto"))
    return check(value)


def _written(degree: int) -> int | str:
    return "auto" if degree == AUTO else degree


Derived = Annotated[
    int,
    Field(ge=1),
    WrapValidator(_degree),
    PlainSerializer(_written, return_type=int | str),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
]
"""A degree from 1, or auto."""
