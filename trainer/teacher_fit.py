"""Student and teacher beside each other on shapes alone: what their modules give, and what the tensor axis divides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn

from ..compression import Technique, name_of
from ..compression.outputs import logits_of
from ..errors import ConfigError
from ..parallel.layout import COLUMN_STYLES
from ..parallel.tensor import resolve_plan
from .config import RunConfig
from .models import BuiltModel
from .teacher_model import teacher_model

_ROWS = 2
LOGITS = ""
"""Stands for the model itself among its modules."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One forward pass of a model."""

    built: BuiltModel
    shapes: Mapping[str, tuple[int, ...]]
    """Module → shape of its output (of several, the first), rows first; the model itself: its logits."""
    order: Sequence[str]
    """Modules in the order in which they were done."""


def look(make: Callable[[str], BuiltModel]) -> Seen:
    """What the modules of a model give, found on shapes alone, or with numbers where the model needs them.

    make: device → the model, whole.
    """
    try:
        return _look(make("meta"), "meta")
    except Exception:  # whatever a model does on shapes alone: with numbers it can do what it does in a run
        return _look(make("cpu"), "cpu")


@torch.no_grad()
def _look(built: BuiltModel, device: str) -> Seen:
    shapes: dict[str, tuple[int, ...]] = {}
    order: list[str] = []

    def see(name: str, module: nn.Module, args: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(found, torch.Tensor):
            shapes[name] = tuple(found.shape)
            order.append(name)

    module = built.module.eval()
    hooks = [m.register_forward_hook(partial(see, name)) for name, m in module.named_modules() if name]
    try:
        outputs = module(*built.example(_ROWS, device=device))
    finally:
        module.train()
        for hook in hooks:
            hook.remove()
    return Seen(built=built, shapes={**shapes, LOGITS: tuple(logits_of(outputs).shape)}, order=order)


def fit(
    techniques: Sequence[Technique],
    student: Callable[[str], BuiltModel],
    config: RunConfig,
    facts: Mapping[str, Any],
) -> list[Technique]:
    """The techniques, those with a teacher checked against both models and given what they must know of them.

    student: device → the model that the phase begins with.
    raises: ConfigError naming the module or the number of classes that does not fit.
    """
    if not any(technique.needs_teacher for technique in techniques):
        return list(techniques)
    ours = look(student)
    return [
        fit_one(technique, ours, config, facts) if technique.needs_teacher else technique
        for technique in techniques
    ]


def fit_one(
    technique: Any, ours: Seen, config: RunConfig, facts: Mapping[str, Any], theirs: Seen | None = None
) -> Any:
    """One technique with a teacher, as `fit`. theirs: the teacher, if it was looked at before."""
    name = name_of(type(technique))
    if technique.teacher is None:
        raise ConfigError(f"{name}: no teacher; want teacher: {{phase: …}}, {{artifact: …}} or a model")
    theirs = theirs or look(partial(teacher_model, technique.teacher, config, facts, like=ours.built))
    pairs: Mapping[str, str] = technique.modules()
    for who, seen, names in (("student", ours, pairs), ("teacher", theirs, pairs.values())):
        refuse_missing(name, who, seen, list(names))
        if config.parallel.tensor > 1:
            _refuse_divided(name, who, seen, list(names), config)
    fitted = technique.fitted(ours.shapes, theirs.shapes)
    if config.parallel.tensor > 1:
        _refuse_matrix(name, fitted.learned(), _tensor_plan(ours, config))
    return fitted


def refuse_missing(technique: str, who: str, seen: Seen, names: Sequence[str]) -> None:
    """raises: ConfigError for a module that the model has not, that gives no tensor, or that never runs."""
    modules = dict(seen.built.module.named_modules())
    for name in names:
        if name not in modules:
            known = ", ".join(list(filter(None, modules))[:40])
            raise ConfigError(f"{technique}: the {who} has no module {name!r}; it has {known}")
        if name not in seen.shapes:
            raise ConfigError(f"{technique}: the {who}'s module {name!r} gives no tensor; name another one")


def with_plan(built: BuiltModel, config: RunConfig) -> BuiltModel:
    """A model with the config's own tensor plan, if that names modules of this model too; else with its own."""
    given = config.parallel.tensor_plan
    names = [name for name, _ in built.module.named_modules()]
    if given is None or not all(any(fnmatchcase(name, glob) for name in names) for glob in given):
        return built
    plan = {glob: cut for glob, cut in given.items() if cut != "replicate"}
    return replace(built, layout=replace(built.layout, tensor_plan=plan, divisible={}))


def _refuse_divided(technique: str, who: str, seen: Seen, names: Sequence[str], config: RunConfig) -> None:
    plan = _tensor_plan(seen, config)
    divided = divided_modules(seen, plan) - plan.keys()  # what a divided layer itself gives is gathered
    for name in names:
        if name in divided:
            raise ConfigError(
                f"{technique}: parallel.tensor={config.parallel.tensor} divides the features that the {who}'s module "
                f"{name!r} gives; name the layer before it, the module after which they are whole again, or use "
                "tensor: 1"
            )


def _refuse_matrix(technique: str, learned: Sequence[str], plan: Mapping[str, str]) -> None:
    for name in learned:
        if name in plan:
            raise ConfigError(
                f"{technique}: the student's module {name!r} is divided over the tensor axis, and what it gives is "
                "whole only after it; name the module that comes next, so that a projection can be learned there"
            )


def _tensor_plan(seen: Seen, config: RunConfig) -> dict[str, str]:
    built = with_plan(seen.built, config)
    return resolve_plan(built.module, built.layout, config.parallel.tensor)


def divided_modules(seen: Seen, plan: Mapping[str, str]) -> set[str]:
    """Modules whose outputs are parts: from a column-divided one up to the row-divided one that closes it."""
    found: set[str] = set()
    open_now: set[str] = set()
    since: set[str] = set()
    for name in seen.order:
        if plan.get(name) in COLUMN_STYLES:
            open_now.add(name)
        elif plan.get(name) == "row":
            found |= since
            open_now, since = set(), set()
        if open_now:
            since.add(name)
    return found  # what no row closes is made whole at once: a head whose logits the loss wants
