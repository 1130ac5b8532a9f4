"""What the user's Accelerate config asks for, and every place where it and the run disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .config import RunConfig
from .config_errors import Path as Keys
from .engine_deepspeed import Found, own_config

_CONFIG: Keys = ("parallel", "accelerate", "config")
_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_DDP = ("MULTI_CPU", "MULTI_GPU", "NO")
_IDLE = {  # what only `accelerate launch` reads, or what the run does itself in its own files
    *("compute_environment", "debug", "downcast_bf16", "enable_cpu_affinity", "gpu_ids", "machine_rank"),
    *(
        "main_training_function",
        "main_process_ip",
        "main_process_port",
        "num_machines",
        "rdzv_backend",
        "same_network",
    ),
    *(
        "tpu_env",
        "tpu_use_cluster",
        "tpu_use_sudo",
        "use_cpu",
        "main_process_port",
        "rdzv_conf",
        "mpirun_config",
    ),
    *("distributed_type", "mixed_precision", "num_processes", "fsdp_config", "deepspeed_config"),
}
_FSDP = {  # key of the file → keyword of the plug-in
    "fsdp_auto_wrap_policy": "auto_wrap_policy",
    "fsdp_transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap",
    "fsdp_min_num_params": "min_num_params",
    "fsdp_reshard_after_forward": "reshard_after_forward",
    "fsdp_offload_params": "cpu_offload",
}
_FSDP_IDLE = {  # of checkpoints and of loading, which are the run's own
    *("fsdp_version", "fsdp_state_dict_type", "fsdp_cpu_ram_efficient_loading", "fsdp_sync_module_states"),
    *("fsdp_use_orig_params", "fsdp_backward_prefetch", "fsdp_forward_prefetch"),
}
_WRAPS = ("transformer_based_wrap", "size_based_wrap", "no_wrap")


@dataclass(frozen=True, kw_only=True)
class Accelerated:
    """What Accelerate is to do."""

    mixed_precision: str
    fsdp: dict[str, Any] | None = None
    """Keywords of its FSDP plug-in; None: DDP."""
    deepspeed: dict[str, Any] | None = None
    """The config that its DeepSpeed plug-in makes; None: not by DeepSpeed."""


def accelerated(config: RunConfig) -> Accelerated:
    """What to do. raises: ConfigError with the first disagreement."""

    def refuse(keys: Keys, message: str) -> None:
        raise ConfigError(f"{'.'.join(map(str, keys))}: {message}")

    return derive(config, refuse)


def derive(config: RunConfig, found: Found) -> Accelerated:
    """What to do; each disagreement is told to `found`."""
    parallel = config.parallel
    own = own_config(parallel.accelerate.config, "accelerate")
    precision = _PRECISION[config.precision]
    theirs = str(own.get("mixed_precision", precision)).lower()
    if theirs != precision:
        found(
            _CONFIG,
            f"mixed_precision is {theirs!r} there, but precision is {config.precision!r}; make them equal",
        )
    processes = own.get("num_processes", parallel.ranks)
    if processes != parallel.ranks:
        found(
            _CONFIG, f"num_processes is {processes} there, but the mesh has {parallel.ranks}; make them equal"
        )
    for key in own.keys() - _IDLE:
        if own[key] not in (None, {}, False, ""):
            found(_CONFIG, f"has {key}, which engine accelerate does not follow; leave it out there")
    kind = str(own.get("distributed_type", "FSDP" if parallel.shard > 1 else "MULTI_GPU")).upper()
    if kind == "DEEPSPEED":
        return Accelerated(
            mixed_precision=precision, deepspeed=_plugin(own.get("deepspeed_config") or {}, found)
        )
    if kind not in (*_DDP, "FSDP"):
        found(_CONFIG, f"distributed_type is {kind}; want FSDP, DEEPSPEED, or {' or '.join(_DDP)} for DDP")
    if kind == "FSDP" and parallel.replicate > 1:
        found(
            ("parallel", "replicate"),
            f"given {parallel.replicate} with Accelerate's FSDP; use shard for all ranks",
        )
    if kind in _DDP and parallel.shard > 1:
        found(("parallel", "shard"), f"given {parallel.shard} with Accelerate's {kind} (DDP); use replicate")
    fsdp = _fsdp(own.get("fsdp_config") or {}, found) if kind == "FSDP" else None
    return Accelerated(mixed_precision=precision, fsdp=fsdp)


def _fsdp(own: Mapping[str, Any], found: Found) -> dict[str, Any]:
    version = own.get("fsdp_version", 2)
    if version != 2:
        found(
            _CONFIG, f"fsdp_config.fsdp_version is {version}; want 2: version 1 hides weights in flat tensors"
        )
    for key in own.keys() - _FSDP.keys() - _FSDP_IDLE:
        if own[key] not in (None, False, ""):
            found(
                _CONFIG, f"has fsdp_config.{key}, which engine accelerate does not follow; leave it out there"
            )
    keywords = {_FSDP[key]: own[key] for key in own.keys() & _FSDP.keys()}
    policy = str(keywords.get("auto_wrap_policy", "no_wrap")).lower()
    if policy not in _WRAPS:
        found(_CONFIG, f"fsdp_config.fsdp_auto_wrap_policy is {policy}; want {', '.join(_WRAPS)}")
    keywords["auto_wrap_policy"] = policy
    classes = keywords.get("transformer_cls_names_to_wrap")
    if isinstance(classes, str):
        keywords["transformer_cls_names_to_wrap"] = [name.strip() for name in classes.split(",")]
    return {"cpu_ram_efficient_loading": False, **keywords}


def _plugin(own: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """DeepSpeed's config as the plug-in's keys say it; a file that they name counts for itself."""
    if own.get("deepspeed_config_file"):
        return own_config(own["deepspeed_config_file"], "accelerate")
    known = {
        *("zero_stage", "gradient_accumulation_steps", "gradient_clipping", "offload_optimizer_device"),
        *(
            "offload_param_device",
            "zero3_init_flag",
            "zero3_save_16bit_model",
            "deepspeed_multinode_launcher",
        ),
    }
    for key in own.keys() - known:
        found(
            _CONFIG,
            f"has deepspeed_config.{key}, which engine accelerate does not follow; leave it out there",
        )
    zero: dict[str, Any] = {"stage": int(own.get("zero_stage", 2))}
    for key in ("optimizer", "param"):
        device = own.get(f"offload_{key}_device")
        if device not in (None, "none"):
            zero[f"offload_{key}"] = {"device": device}
    settings: dict[str, Any] = {"zero_optimization": zero}
    for key in ("gradient_accumulation_steps", "gradient_clipping"):
        if key in own:
            settings[key] = own[key]
    return settings
