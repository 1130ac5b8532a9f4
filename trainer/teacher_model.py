"""Which model a technique's `teacher` means, and the models of phases that later phases learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from .artifact import load_built
from .config import RunConfig
from .models import BuiltModel, build_model

Spec = str | Mapping[str, Any]


def teacher_model(
    spec: Spec,
    config: RunConfig,
    facts: Mapping[str, Any],
    device: str = "cpu",
    *,
    like: BuiltModel | None = None,
) -> BuiltModel:
    """The whole model that ``spec`` means: {phase: NAME}, {artifact: PATH}, or a model as under ``model``.

    facts: of the data, for sizes that a model's spec leaves open.   device: "meta" for shapes alone.
    like:  a model on the same data, for the form of an input where the teacher does not say it.
    raises: ConfigError naming what is wrong with the spec or what is not there.
    """
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    kinds = [kind for kind in ("phase", "artifact") if kind in given]
    try:
        if not kinds:
            seed = given.pop("seed", config.seed)
            built = build_model(given, seed=seed, data=facts, device=device)
        else:
            folder = (
                phase_folder(config, given["phase"]) if kinds == ["phase"] else Path(str(given["artifact"]))
            )
            refuse_unknown_keys(given, kinds[0])
            trusted = kinds == ["phase"] or bool(given.get("trust_factory"))
            built = load_built(folder, trust_factory=trusted, device=device)
    except CheckpointError as error:
        raise ConfigError(f"teacher {spec!r}: {error}") from error
    if built.input_shape is None and like is not None:
        same = {key: getattr(like, key) for key in ("input_shape", "input_dtype", "input_range")}
        built = replace(built, **same)
    return built


def refuse_unknown_keys(given: Mapping[str, Any], kind: str) -> None:
    """raises: ConfigError for a key that a teacher of this kind (phase, artifact) has not."""
    known = {"phase": ("phase",), "artifact": ("artifact", "trust_factory")}[kind]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigError(f"teacher: unknown key {unknown[0]!r} beside {kind}; known: {', '.join(known)}")


def phase_folder(config: RunConfig, phase: str) -> Path:
    """Where the model of an earlier phase is kept for those that learn from it."""
    return config.run_folder / "teachers" / phase


def taught_by(config: RunConfig, phase: str) -> list[str]:
    """The phases that name `phase` as their teacher."""
    return [
        later.name
        for later in config.phases
        for technique in later.techniques
        if teacher_phase(technique.settings.get("teacher")) == phase
    ]


def teacher_phase(spec: Any) -> str | None:
    """The phase that a teacher is, if it is one."""
    return str(spec["phase"]) if isinstance(spec, Mapping) and "phase" in spec else None
