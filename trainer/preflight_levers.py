"""What the levers on memory and time (recompute, compile, offload, precisions, build_once) cannot go together with."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from ..parallel.schedules import SCHEDULES
from .config import RunConfig
from .models import BuiltModel
from .precision import modules_of
from .preflight_rules import Found

_LOOK_INSIDE = ("quantization.", "distillation.features", "distillation.attention")
"""Beginnings of the names of techniques that may look at activations: a block that runs again shows them twice, and
one that is compiled runs without asking them."""
_LOOK_WITH = {
    "pruning.sparsity_penalty": ("target", "activations"),
    "pruning.structured": ("score", "activation"),
}
"""Techniques that do with one setting only → the setting and its value."""


def check_levers(config: RunConfig, found: Found) -> None:
    """What can be said without the model."""
    _check_recompute(config, found)
    _check_compile(config, found)
    parallel = config.parallel
    if parallel.engine == "native" and parallel.offload and parallel.shard == 1:
        found.problem(
            ("parallel", "offload"), "given true without shards; want shard: 2 or more, or offload: false"
        )


def check_levers_on(built: BuiltModel, config: RunConfig, found: Found) -> None:
    """What must be known of the model: its normalisation, and the modules that precisions name."""
    parallel, key = config.parallel, ("parallel", "precision_by_module")
    averages = any(isinstance(module, _BatchNorm) for module in built.module.modules())
    if parallel.compile and parallel.recompute and averages:
        found.problem(
            ("parallel", "compile"),
            "given true with recompute, and the model has batch normalisation, whose averages must move once; leave "
            "one of them out",
        )
    if not parallel.precision_by_module:
        return
    if parallel.engine != "native":
        found.problem(key, f"given with engine {parallel.engine}; want engine: native, or precision alone")
    if parallel.pipeline > 1:
        found.problem(
            key,
            "given with a pipeline, whose stages send one precision; want pipeline: 1, or precision alone",
        )
    try:
        modules_of(built.module, parallel.precision_by_module)
    except ConfigError as error:
        found.problem(key, str(error).removeprefix("parallel.precision_by_module: "))


def _check_recompute(config: RunConfig, found: Found) -> None:
    """Techniques that count what flows through inner modules would count it twice."""
    parallel = config.parallel
    if parallel.recompute_keep and not parallel.recompute:
        found.problem(
            ("parallel", "recompute_keep"), "given without recompute; want recompute: 1 or more beside it"
        )
    if not parallel.recompute:
        return
    if names := looking(config):
        found.problem(
            ("parallel", "recompute"),
            f"given {parallel.recompute}, but {names} may look at activations, and blocks "
            "that run again would show them twice; use recompute: 0, and more micro-batches to save memory",
        )
    if parallel.recompute_keep and parallel.pipeline > 1 and SCHEDULES[parallel.schedule].splits:
        found.problem(
            ("parallel", "recompute_keep"),
            f"given with schedule {parallel.schedule}, in which blocks run again twice, and what is kept serves once; "
            "use recompute alone, or schedule: 1f1b",
        )


def _check_compile(config: RunConfig, found: Found) -> None:
    parallel, key = config.parallel, ("parallel", "compile")
    if not parallel.compile or parallel.engine != "native":
        return
    if names := looking(config):
        found.problem(
            key,
            f"given true, but {names} may look at activations inside of the blocks; use compile: false",
        )
    if parallel.pipeline > 1 and SCHEDULES[parallel.schedule].splits:
        found.problem(
            key,
            f"given true with schedule {parallel.schedule}, which takes a block's backward apart, and a compiled one "
            "is one piece; use another schedule, or compile: false",
        )
    if not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++") or find_spec("triton")):
        found.problem(key, "given true, but there is no C++ compiler (g++) and no triton here; install one")


def looking(config: RunConfig) -> str:
    """The techniques of the run that may look at activations."""
    found = set()
    for entry in (entry for phase in config.phases for entry in phase.techniques):
        key, value = _LOOK_WITH.get(entry.name, ("", None))
        if entry.name.startswith(_LOOK_INSIDE) or (key and entry.settings.get(key) == value):
            found.add(entry.name)
    return ", ".join(sorted(found))
