"""What the engines of other libraries cannot do, said before they are imported."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import ConfigError
from . import engine_accelerate as accelerated
from .config import RunConfig
from .config_engines import AccelerateConfig, DeepSpeedConfig
from .engine_deepspeed import Found, derive
from .precision import computes_fp16

_OTHER_AXES = ("pipeline", "context", "tensor")


def check_engine(config: RunConfig, found: Found) -> None:
    """The engine is installed, has the axes that are asked for, and its own config says what the run says."""
    parallel = config.parallel
    if parallel.engine != "deepspeed" and parallel.deepspeed != DeepSpeedConfig():
        found(("parallel", "deepspeed"), f"given with engine: {parallel.engine}; want engine: deepspeed")
    if parallel.engine != "accelerate" and parallel.accelerate != AccelerateConfig():
        found(("parallel", "accelerate"), f"given with engine: {parallel.engine}; want engine: accelerate")
    if parallel.engine == "native":
        return
    if find_spec(parallel.engine) is None:
        found(("parallel", "engine"), f"{parallel.engine} is not installed; pip install {parallel.engine}")
    for axis in _OTHER_AXES:
        degree = getattr(parallel, axis)
        if degree > 1:
            found(
                ("parallel", axis),
                f"given {degree}, but engine {parallel.engine} has replicate and shard alone; use engine: native",
            )
    for lever in ("recompute", "compile", "offload", "build_once"):
        if value := getattr(parallel, lever):
            found(("parallel", lever), f"given {value} with engine {parallel.engine}; native alone does it")
    if parallel.engine == "deepspeed" or _accelerates_deepspeed(config, found):
        _check_deepspeed(config, found)


def _accelerates_deepspeed(config: RunConfig, found: Found) -> bool:
    if config.parallel.engine != "accelerate":
        return False
    try:
        asked = accelerated.derive(config, found)
    except ConfigError as error:
        found(("parallel", "accelerate", "config"), str(error).split(": ", 1)[-1])
        return False
    return asked.deepspeed is not None


def _check_deepspeed(config: RunConfig, found: Found) -> None:
    parallel = config.parallel
    try:
        asked = [derive(config, phase, found) for phase in config.phases]
    except ConfigError as error:
        found(("parallel", "deepspeed", "config"), str(error).split(": ", 1)[-1])
        return
    stages = {asked[0].stage}
    if asked[0].settings["fp16"]["enabled"] and not computes_fp16():
        found(
            ("precision",),
            "fp16 has no instructions on this processor, and DeepSpeed refuses it there; use bf16 or fp32",
        )
    if stages == {0} and parallel.shard > 1:
        found(
            ("parallel", "shard"),
            f"given {parallel.shard} with ZeRO stage 0, which divides nothing; use replicate",
        )
    if stages != {0} and parallel.replicate > 1:
        (stage,) = stages
        found(
            ("parallel", "replicate"),
            f"given {parallel.replicate} with ZeRO stage {stage}; use shard for all ranks",
        )
