"""The table: which rule carries labels through which operation, and what happens without one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from . import rules_convolutions, rules_norms, rules_products, rules_views
from .flow import Call, Flow, Rule
from .labels import Labelled, combine

RULES: dict[str, Rule] = {
    **rules_views.RULES,
    **rules_products.RULES,
    **rules_convolutions.RULES,
    **rules_norms.RULES,
}

# Position by position, though torch does not tag them so.
_COPIES = {
    "clone",
    "to",
    "_to_copy",
    "contiguous",
    "type_as",
    "float",
    "detach",
    "detach_",
    "alias",
    "lift_fresh",
    "lift",
}
_POINTWISE = {
    *_COPIES,
    *(
        "copy_",
        "fill",
        "fill_",
        "zero_",
        "bernoulli",
        "bernoulli_",
        "where",
        "floor_divide",
        "triu",
        "tril",
        "cumsum",
    ),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("hardswish", "hardswish_", "_prelu_kernel", "log_sigmoid", "log_sigmoid_forward"),
    *("dropout", "dropout_", "native_dropout", "feature_dropout", "feature_dropout_", "alpha_dropout"),
    *("softmax", "log_softmax", "_softmax", "_log_softmax"),
}


def rule_of(func: torch._ops.OpOverload) -> Rule | None:
    """The rule for this operation, or None where it is not known (torch may take it apart into known ones)."""
    name = func._schema.name.removeprefix("aten::")
    if name in ("max", "min") and any(argument.name == "other" for argument in func._schema.arguments):
        return pointwise  # of two tensors, not along a dim
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in func.tags or name in _POINTWISE:
        return pointwise
    return None


def is_view(func: torch._ops.OpOverload) -> bool:
    """Whether the operation only moves or copies what is there."""
    return func._schema.name.removeprefix("aten::") in {*rules_views.RULES, *_COPIES}


def pointwise(flow: Flow, call: Call) -> Sequence[Labelled] | None:
    """Inputs broadcast against each other; entries that meet are united, and those that meet a rigid dim stay."""
    results = call.results()
    shape = max((tuple(r.shape) for r in results), key=len, default=())
    operands = [_aligned(flow.of(x), len(shape)) for x in call.tensors() if x.ndim <= len(shape)]
    if not any(x.factors for x in operands):
        return None
    if any(tuple(r.shape) != shape for r in results):
        return unknown(flow, call)
    if call.name in ("add", "add_"):
        _mark_residual(flow, call, operands)
    _roles(flow, call)
    both = combine(flow.units, operands, f"{call.where}: meets a size that is fixed")
    return [both for _ in results]


def unknown(flow: Flow, call: Call) -> None:
    """Nothing may change in size where an operation without a rule looks on: its inputs stay whole."""
    for x in call.tensors():
        for factor in flow.of(x).factors:
            flow.units.pin(factor.ids, f"{call.where}: it is not known how this operation treats sizes")


def _aligned(x: Labelled, rank: int) -> Labelled:
    more = rank - len(x.shape)
    factors = tuple(f._replace(dims=tuple(d + more for d in f.dims)) for f in x.factors)
    return Labelled((1,) * more + x.shape, factors)


def _mark_residual(flow: Flow, call: Call, operands: Sequence[Labelled]) -> None:
    """Two activations are added: what labels both is a stream that many layers write to."""
    if len(operands) == 2 and not any(flow.parameter(x) for x in call.tensors()):
        left, right = operands
        for factor in left.factors:
            other = right.at(factor.dims[0])
            if other and not np.array_equal(factor.ids, other.ids):  # not what has already been one
                flow.units.mark(factor.ids, "residual")


def _roles(flow: Flow, call: Call) -> None:
    role = "scale" if call.name.startswith(("mul", "div")) else "out"
    for x in call.tensors():
        if (
            sum(size > 1 for size in x.shape) == 1
        ):  # what is done to a matrix says nothing about its rows and columns
            flow.role(x, *(role for _ in range(x.ndim)))
