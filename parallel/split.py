"""Cutting a chain of modules into pipeline stages: balanced by cost, or by hand."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConfigError
from .layout import Layout
from .shadow import Shadow


def parameter_costs(model: nn.Module, order: Sequence[str]) -> list[float]:
    """Numbers of parameters, one per member of `order`."""
    return [float(sum(p.numel() for p in model.get_submodule(name).parameters())) for name in order]


def module_costs(model: nn.Module, layout: Layout, example: Tensor | None = None) -> list[float]:
    """Forward FLOPs of each member of `layout.order`, counted without computing anything.

    example: an input of the model, one micro-batch [rows, ...]. Without it, or where no operation that FLOPs are
    counted for occurs, or the model cannot run on shapes alone: numbers of parameters.
    """
    if example is None:
        return parameter_costs(model, layout.order)
    counts: list[float] = []

    def count(module: nn.Module, x: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            y = module(x)
        counts.append(float(counter.get_total_flops()))
        return y

    try:
        with torch.no_grad():
            Shadow(model, layout.order).run(example, count)
    except Exception:  # whatever a model does on shapes alone; the fallback is always possible
        counts = []
    return counts if any(counts) else parameter_costs(model, layout.order)


def balanced(costs: Sequence[float], stages: int, whole: Collection[int] = ()) -> list[int]:
    """Lengths of `stages` consecutive runs of modules whose most expensive run is as cheap as possible.

    costs: one per module.   whole: indices after which must not be cut.   Among equals, the one with the most
    even stages (least sum of squares).   raises: ValueError where there are not enough places to cut.
    cost: O(stages · modules²).
    """
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    count = len(costs)
    best: dict[int, tuple[float, float, list[int]]] = {0: (0.0, 0.0, [])}
    for stage in range(1, stages + 1):
        longer: dict[int, tuple[float, float, list[int]]] = {}
        for end in range(stage, count + 1):
            if end - 1 in whole and end < count:
                continue
            for start, (most, squares, lengths) in best.items():
                if start >= end or (stage == stages and end < count):
                    continue
                cost = sums[end] - sums[start]
                candidate = (max(most, cost), squares + cost * cost, [*lengths, end - start])
                if end not in longer or candidate < longer[end]:
                    longer[end] = candidate
        best = longer
    if count not in best:
        raise ValueError(f"{count} modules cannot be cut into {stages} stages")
    return best[count][2]


def by_hand(order: Sequence[str], stages: Sequence[Sequence[str]]) -> list[int]:
    """Lengths of the stages that lists of globs over `order` name.

    raises: ConfigError where a glob names no member, a member is in no stage or in two, a stage is empty, or a
    stage is not a consecutive run of `order`.
    """
    where: dict[str, int] = {}
    for number, patterns in enumerate(stages):
        for pattern in patterns:
            names = [name for name in order if fnmatchcase(name, pattern)]
            if not names:
                raise ConfigError(
                    f"parallel.stages[{number}]: {pattern!r} names none of the modules {', '.join(order)}"
                )
            for name in names:
                if where.setdefault(name, number) != number:
                    raise ConfigError(
                        f"parallel.stages: {name} is in stage {where[name]} and in stage {number}"
                    )
    missing = [name for name in order if name not in where]
    if missing:
        raise ConfigError(f"parallel.stages: {', '.join(missing)} in no stage; each module must be in one")
    numbers = [where[name] for name in order]
    if numbers != sorted(numbers) or len(set(numbers)) != len(stages):
        raise ConfigError(
            "parallel.stages: each stage must be a run of modules that follow one another, none empty; the order is "
            + ", ".join(order)
        )
    return [numbers.count(number) for number in range(len(stages))]
