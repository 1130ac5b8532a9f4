"""What an engine needs to know of a model, as plain values: no engine reads model code."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model may be cut: into pipeline stages, tensor shards and FSDP units. Empty fields mean "unknown"."""

    order: tuple[str, ...] = ()
    """Module names in execution order; each takes one tensor and gives one tensor, and the forward is their composition."""

    tensor_plan: dict[str, str] = field(default_factory=dict)
    """Glob over module names → "column" | "row"; every other module is replicated over the tensor axis."""

    divisible: dict[str, int] = field(default_factory=dict)
    """What the degree of the tensor axis must divide, by name: {"attention heads": 6}."""

    units: tuple[str, ...] = ()
    """Globs of modules that become one FSDP unit each; () = the members of `order` that have parameters."""
