"""What activation checkpointing cannot go together with."""

from __future__ import annotations

from .config import RunConfig
from .preflight_rules import Found

_LOOK_INSIDE = (
    "quantization.",
    "distillation.features",
    "distillation.attention",
    "pruning.sparsity_penalty",
    "pruning.structured",
)
"""Beginnings of the names of techniques that may look at activations: a block that runs again shows them twice."""


def check_recompute(config: RunConfig, found: Found) -> None:
    """Techniques that count what flows through inner modules would count it twice."""
    if not config.parallel.recompute:
        return
    looking = {
        entry.name
        for phase in config.phases
        for entry in phase.techniques
        if entry.name.startswith(_LOOK_INSIDE)
    }
    if looking:
        found.problem(
            ("parallel", "recompute"),
            f"given {config.parallel.recompute}, but {', '.join(sorted(looking))} may look at activations, and blocks "
            "that run again would show them twice; use recompute: 0, and more micro-batches to save memory",
        )
