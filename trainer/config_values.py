"""The two places of a config that are a name or a mapping: `model` and `data.source`."""

from __future__ import annotations

import re
from typing import Any

from .config_errors import nearest, refusal, show

MODEL_KINDS: dict[str, tuple[str, ...] | None] = {
    "name": None,
    "transformers": ("task", "config", "pretrained", "layers"),
    "timm": ("pretrained", "args"),
    "factory": ("args", "task"),
    "artifact": (),
}
"""Key that says which kind of model → other keys it may have; None: the model's own, checked by it."""

_TABLE = ("length", "tokenizer", "valid_fraction")
SOURCE_KINDS: dict[str, tuple[str, ...] | None] = {
    "name": (),
    "idx": (),
    "text": ("length", "tokens", "valid_fraction"),
    "parquet": ("length", "tokenizer", "stream", "valid_fraction"),
    "json": _TABLE,
    "csv": ("length", "tokenizer", "separator", "valid_fraction"),
    "lines": _TABLE,
    "arrow": _TABLE,
    "images": ("size", "valid_fraction"),
    "mix": (),
}
"""Key that says which kind of data → the other keys it may have; None: the source's own settings."""


def check_model(value: Any) -> Any:
    """`value` itself, if it is a model's name or a mapping of one kind; the model checks its own settings."""
    _one_kind(value, MODEL_KINDS, "lenet_300_100")
    factory = value.get("factory") if isinstance(value, dict) else None
    if factory is not None and not re.fullmatch(r"[\w.]+:[\w.]+", str(factory)):
        raise refusal((("factory",), f'given {show(factory)}; want "package.module:function"'))
    return value


def check_source(value: Any) -> Any:
    """`value` itself, if it is a built-in source's name or a mapping of one known kind with known keys."""
    _one_kind(value, SOURCE_KINDS, "digits")
    return value


def _one_kind(value: Any, kinds: dict[str, tuple[str, ...] | None], example: str) -> None:
    if isinstance(value, str) and value:
        return
    names = ", ".join(kinds)
    if not isinstance(value, dict):
        raise refusal(
            ((), f"given {show(value)}; want a name such as {example}, or a mapping with one of {names}")
        )
    given = [kind for kind in kinds if kind in value]
    if len(given) != 1:
        count = " and ".join(given) or (f"the keys {', '.join(map(str, value))}" if value else "{}")
        hint = "".join(nearest(str(key), kinds) for key in list(value)[:1] if not given)
        raise refusal(((), f"given {count}; want exactly one of {names}{hint}"))
    kind = given[0]
    if not isinstance(value[kind], str | list | dict) or not value[kind]:
        raise refusal(((kind,), f"given {show(value[kind])}; want text"))
    others = kinds[kind]
    if others is None:
        return
    unknown = [key for key in value if key not in (kind, *others)]
    if unknown:
        raise refusal(*(((key,), f"unknown key{nearest(str(key), (kind, *others))}") for key in unknown))
