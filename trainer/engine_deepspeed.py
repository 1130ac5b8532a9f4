"""DeepSpeed's config from ours and the user's own, and every place where the two disagree."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .config import PhaseConfig, RunConfig
from .config_errors import Path as Keys

AUTO = "auto"  # in the user's file: whatever the run says
Found = Callable[[Keys, str], None]
"""Takes the key to mend and the message."""


@dataclass(frozen=True, kw_only=True)
class Zero:
    """What of DeepSpeed's config decides how the engine is put together."""

    stage: int
    settings: dict[str, Any]
    """Complete, as `deepspeed.initialize` takes it."""

    @property
    def half_copies(self) -> bool:
        """Whether the model itself computes with half-precision weights, beside masters in float32."""
        return self.settings["bf16"]["enabled"] or self.settings["fp16"]["enabled"]


def own_config(given: str | Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """The user's own config as a dict. raises: ConfigError for a file that is not there or is not one."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return json.loads(json.dumps(dict(given)))
    try:
        text = Path(given).read_text()
    except OSError as error:
        raise ConfigError(f"parallel.{what}.config: {given} cannot be read ({error.strerror})") from error
    try:
        if Path(given).suffix in (".yaml", ".yml"):
            import yaml

            read = yaml.safe_load(text)
        else:
            read = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"parallel.{what}.config: {given} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise ConfigError(
            f"parallel.{what}.config: {given} holds a {type(read).__name__}; want keys and values"
        )
    return read


def zero_of(config: RunConfig, phase: PhaseConfig | int = 0) -> Zero:
    """DeepSpeed's config for a phase. raises: ConfigError with the first disagreement."""

    def refuse(keys: Keys, message: str) -> None:
        raise ConfigError(f"{'.'.join(map(str, keys))}: {message}")

    return derive(config, phase, refuse)


def derive(config: RunConfig, phase: PhaseConfig | int, found: Found) -> Zero:
    """DeepSpeed's config for a phase: the user's own, completed; each disagreement is told to `found`."""
    ours = config.parallel.deepspeed
    own = own_config(ours.config, "deepspeed")
    if config.parallel.engine == "accelerate":
        from .engine_accelerate import derive as derive_accelerated

        own = derive_accelerated(config, found).deepspeed or {}
    zero = dict(own.get("zero_optimization", {}))
    stage = _one(found, ours.stage, zero.get("stage", AUTO), "stage", "zero_optimization.stage", default=2)
    zero["stage"] = stage
    for key, theirs in (("offload_optimizer", "offload_optimizer"), ("offload_parameters", "offload_param")):
        _offload(found, getattr(ours, key), zero, key, theirs)
    _check_offload(found, zero, stage)
    for key, value in _expected(config, phase, stage).items():
        _agree(found, own, key.split("."), value)
    for key in (
        "scheduler",
        "curriculum_learning",
        "data_efficiency",
        "compression_training",
        "tensor_parallel",
    ):
        if own.get(key):
            found(_CONFIG, f"has {key}, which the run itself does; leave it out there")
    settings = {key: value for key, value in own.items() if key not in ("optimizer", "scheduler")}
    half = stage >= 2 and config.precision
    # Forgepress clips, schedules and scales the loss; what DeepSpeed is told makes it do none of these again.
    settings |= {
        "train_micro_batch_size_per_gpu": max(1, config.data.batch // _pieces(config)),
        "gradient_accumulation_steps": config.parallel.microbatches,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": half == "bf16"},
        "fp16": {"enabled": half == "fp16", "loss_scale": 1.0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused Adam works in host memory too
        "steps_per_print": 2**31,
    }
    settings.pop(
        "train_batch_size", None
    )  # DeepSpeed wants it to be the product, which a ragged batch is not
    if half in ("bf16", "fp16"):
        settings["data_types"] = {"grad_accum_dtype": "fp32"} | own.get("data_types", {})
    return Zero(stage=stage, settings=settings)


_CONFIG: Keys = ("parallel", "deepspeed", "config")


def _pieces(config: RunConfig) -> int:
    return config.parallel.microbatches * config.parallel.data_ranks


def _expected(config: RunConfig, phase: PhaseConfig | int, stage: int) -> dict[str, Any]:
    """Keys of DeepSpeed's config that say what the run says too, with the run's values."""
    optimizer = config.optimizer_of(phase)
    params: dict[str, Any] = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if optimizer.name == "sgd":
        params["momentum"] = optimizer.momentum
    else:
        params |= {"betas": list(optimizer.betas), "eps": optimizer.eps}
    return {
        "train_batch_size": config.data.batch,
        "train_micro_batch_size_per_gpu": max(1, config.data.batch // _pieces(config)),
        "gradient_accumulation_steps": config.parallel.microbatches,
        "gradient_clipping": optimizer.clip_norm or 0.0,
        "optimizer.type": optimizer.name,
        **{f"optimizer.params.{key}": value for key, value in params.items()},
        "bf16.enabled": config.precision == "bf16",
        "fp16.enabled": config.precision == "fp16",
    }


def _agree(found: Found, own: Mapping[str, Any], path: list[str], ours: Any) -> None:
    theirs: Any = own
    for key in path:
        if not isinstance(theirs, Mapping) or key not in theirs:
            return
        theirs = theirs[key]
    same = str(theirs).lower() == str(ours).lower() if isinstance(ours, str) else theirs == ours
    if theirs != AUTO and not same:
        found(
            _CONFIG,
            f"{'.'.join(path)} is {theirs!r} there, but the run says {ours!r} ({_WHERE[path[0]]}); "
            'make them equal, or write "auto" there',
        )


_WHERE = {
    "train_batch_size": "data.batch",
    "train_micro_batch_size_per_gpu": "data.batch over micro-batches and ranks",
    "gradient_accumulation_steps": "parallel.microbatches",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer",
    "bf16": "precision",
    "fp16": "precision",
}


def _one(found: Found, ours: Any, theirs: Any, key: str, their_key: str, *, default: Any) -> Any:
    if ours is not None and theirs not in (AUTO, ours):
        found(
            ("parallel", "deepspeed", key),
            f"given {ours!r}, but {their_key} is {theirs!r} in parallel.deepspeed.config; keep one of them",
        )
    return ours if ours is not None else default if theirs == AUTO else theirs


def _offload(found: Found, ours: bool | None, zero: dict[str, Any], key: str, their_key: str) -> None:
    theirs = zero.get(their_key)
    device = theirs.get("device", "cpu") if isinstance(theirs, Mapping) else theirs or "none"
    if device == "nvme":
        found(_CONFIG, f"zero_optimization.{their_key}.device is 'nvme'; want cpu or none")
    there = AUTO if theirs is None else device != "none"
    if _one(found, ours, there, key, f"zero_optimization.{their_key}.device", default=False):
        zero[their_key] = {"device": "cpu", **(theirs if isinstance(theirs, Mapping) else {})}
    else:
        zero.pop(their_key, None)


def _check_offload(found: Found, zero: Mapping[str, Any], stage: int) -> None:
    if "offload_optimizer" in zero and stage == 0:
        found(("parallel", "deepspeed", "offload_optimizer"), "given with stage 0; want stage 1, 2 or 3")
    if "offload_param" in zero and stage != 3:
        found(("parallel", "deepspeed", "offload_parameters"), f"given with stage {stage}; want stage 3")
    for key in ("zero_hpz_partition_size", "mics_shard_size"):
        if zero.get(key, 1) not in (1, -1):
            found(_CONFIG, f"zero_optimization.{key} is {zero[key]}: shares within groups; want it left out")
    for key in ("zero_quantized_weights", "zero_quantized_gradients", "zenflow"):
        if zero.get(key):
            found(
                _CONFIG, f"zero_optimization.{key}: numbers would not be those of one process; leave it out"
            )
