"""The parts of a run's config that belong to one engine: DeepSpeed's and Accelerate's own settings."""

from __future__ import annotations

from typing import Any, Literal

from .config_base import Part


class DeepSpeedConfig(Part):
    """engine: deepspeed. What is left out comes from `config`, and what is in neither from the rest of the run."""

    stage: Literal[0, 1, 2, 3] | None = None
    """ZeRO: 0 divides nothing, 1 moments and masters, 2 gradients too, 3 weights too; empty: that of `config`, or 2."""
    offload_optimizer: bool | None = None
    """Keep masters and moments in host memory and move weights there (stages 1 to 3)."""
    offload_parameters: bool | None = None
    """Keep the shares of weights in host memory (stage 3)."""
    config: str | dict[str, Any] | None = None
    """DeepSpeed's own config: a JSON file, or its keys. Where it says other than the run, the run is refused."""


class AccelerateConfig(Part):
    """engine: accelerate."""

    config: str | dict[str, Any] | None = None
    """What `accelerate config` writes: a YAML or JSON file, or its keys; empty: DDP for replicate, FSDP2 for shard."""
