"""The models: each file of this folder holds built-in ones, `external` brings in those of others."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from ...errors import ConfigError
from ._base import BuiltModel, ModelSettings, as_spec, nearest, resolve, seeded
from .external import EXTERNAL

__all__ = ["BuiltModel", "build_model", "model_names"]


def build_model(
    spec: str | Mapping[str, Any],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    data: Mapping[str, Any] | None = None,
) -> BuiltModel:
    """The model that a config's `model` asks for, with weights made from `seed` or, if it says so, pretrained.

    spec:    a built-in name, {name: …, settings…}, {transformers: …}, {timm: …}, {artifact: FOLDER} or
             {factory: "package.module:function"}.
    seed:    the weights depend on it alone, whatever the global generators' state, which stays as it was.
    device:  where the module ends up; weights are made on the CPU so that they are the same bits everywhere.
             "meta" allocates and loads nothing (timm and own factories are made first, then dropped).
    data:    facts of the data that fill unset sizes: {"input_shape": (1, 28, 28), "classes": 10,
             "vocabulary": 65, "length": 64}.
    raises:  ConfigError for an unknown model or setting (with the nearest), a wrong value, a missing library.
    """
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    facts = data or {}
    kinds = [kind for kind in ("name", *EXTERNAL) if given.get(kind) is not None]
    if len(kinds) != 1:
        raise ConfigError(
            f"model: {given!r} must have exactly one of name, {', '.join(EXTERNAL)}; "
            f"built-in names: {', '.join(model_names())}"
        )
    kind = kinds[0]
    device = torch.device(device)
    shapes_only = device.type == "meta" and kind in ("name", "transformers", "artifact")
    with seeded(seed), torch.device("meta" if shapes_only else "cpu"):
        built = _built_in(given, facts) if kind == "name" else EXTERNAL[kind](given, facts)
    built.module.to(device)
    return built


def model_names() -> tuple[str, ...]:
    """Names of the built-in models, sorted."""
    return tuple(sorted(_registry()))


def _built_in(given: dict[str, Any], facts: Mapping[str, Any]) -> BuiltModel:
    name = given.pop("name")
    registry = _registry()
    if name not in registry:
        raise ConfigError(
            f"model: {name!r} is not known{nearest(str(name), registry)}; "
            f"built-in: {', '.join(model_names())}; others by {{transformers: …}}, {{timm: …}} or {{factory: …}}"
        )
    settings = resolve(name, registry[name], given, facts)
    return replace(settings.build(), spec=as_spec(name, settings))


@cache
def _registry() -> dict[str, type[ModelSettings]]:
    """The folder is the registry: every public file's MODELS."""
    found: dict[str, type[ModelSettings]] = {}
    for entry in pkgutil.iter_modules(__path__):
        if not entry.name.startswith("_"):
            found |= getattr(importlib.import_module(f".{entry.name}", __name__), "MODELS", {})
    return found
