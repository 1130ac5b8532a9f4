"""Whether a checkpoint belongs to the run that a config asks for: its model, and the phases that have begun."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ConfigError
from .checkpoint import Saved
from .config import RunConfig

_ADVICE = "take another name for this run, or start it over with --fresh"


def refuse_another_run(config: RunConfig, saved: Saved, spec: dict[str, Any]) -> None:
    """Compare the config with what ``saved`` was saved from.

    spec:   the config's model, fully resolved.
    raises: ConfigError where the model is another one, where a phase that has begun is not in the config, or where
        the phase in hand has another optimizer or other techniques. What comes after may be changed.
    """
    if spec != saved.state["model"]:
        given, held = _differing(spec, saved.state["model"])
        raise ConfigError(f"model: {given} given, but the checkpoint {saved.folder} holds {held}; {_ADVICE}")
    state = saved.state
    names = [phase.name for phase in config.phases]
    begun = [*(line["phase"] for line in state["results"][: state["phase"]]), state["phase_name"]]
    if names[: len(begun)] != begun:
        raise ConfigError(
            f"phases: {', '.join(names)} given, but {saved.folder} was saved in phase number {len(begun)} "
            f"of {', '.join(begun)}; keep the phases that have begun, {_ADVICE}"
        )
    for key, here in bound_to_phase(config, state["phase"]).items():
        if here != state["begun"][key]:
            raise ConfigError(
                f"phase {begun[-1]}: {key} {here} given, but {saved.folder} was saved in the middle of it with "
                f"{state['begun'][key]}; keep it until the phase has ended, {_ADVICE}"
            )


def bound_to_phase(config: RunConfig, index: int) -> dict[str, Any]:
    """What may not change in the middle of a phase, because the saved state belongs to it."""
    phase = config.phases[index]
    techniques = [{"name": t.name, **t.build().settings()} for t in phase.techniques]
    return {
        "optimizer.name": config.optimizer_of(phase).name,
        "techniques": json.loads(json.dumps(techniques)),
    }


def _differing(here: dict[str, Any], there: dict[str, Any]) -> tuple[str, str]:
    """What differs between two models' specs, as text for a person; two kinds of model differ by name."""
    keys = [k for k in {**here, **there} if here.get(k) != there.get(k)]
    if "name" in keys:
        keys = ["name"]
    first, second = (", ".join(f"{k}: {spec.get(k)}" for k in keys) for spec in (here, there))
    return first, second
