"""The engines of other libraries on which every technique is proven, as keys of `parallel`."""

from typing import Any

ENGINES: dict[str, dict[str, Any]] = {
    "zero-1": {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": 1}},
    "zero-2": {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": 2}},
    "zero-3": {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": 3}},
    "accelerate-fsdp2": {"engine": "accelerate", "shard": 2},
}
