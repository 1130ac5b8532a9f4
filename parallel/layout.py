"""What the engine needs to know of a model, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

TENSOR_STYLES = ("column", "row", "replicate")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model may be cut: along its depth (pipeline), its matrices (tensor) and its memory (shard)."""

    order: tuple[str, ...] = ()
    """Module names in execution order; each takes ONE tensor and gives ONE tensor, and the model's forward is
    exactly their composition. Empty: not known, so the model cannot be cut into pipeline stages."""

    tensor_plan: Mapping[str, str] = field(default_factory=dict)
    """Glob over module names → "column" (output features are divided), "row" (input features are divided) or
    "replicate". Modules that no glob names are whole on every rank of the tensor axis."""

    divisible: Mapping[str, int] = field(default_factory=dict)
    """Numbers that the tensor axis must divide, by the name a person knows: {"attention heads": 6}."""

    units: tuple[str, ...] = ()
    """Globs of modules that become one FSDP unit each (gathered and freed together). Empty: the members of
    `order` that have parameters."""
