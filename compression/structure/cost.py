"""What a model costs: multiply-adds and parameters, now and after a cut that has not been made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from .graph import Graph, Group, Kept
from .labels import Labelled


def macs(model: nn.Module, example: Any) -> int:
    """Multiply-adds of one forward pass on ``example``: linear layers, convolutions, products and attention.

    Elementwise work, norms and pooling are not counted. raises: ConfigError as `trace` does.
    """
    from .build import trace

    return graph_macs(trace(model, example))


def graph_macs(graph: Graph, kept: Kept | None = None, *, blocks: Sequence[str] = ()) -> int:
    """Multiply-adds of the traced model, or of what `cut` with ``kept`` and ``blocks`` would leave of it."""
    alive, gone = graph.alive(kept or {}), tuple(f"{name}." for name in blocks)
    return sum(
        math.prod(_elements(part, alive) for part in parts)
        for step in graph.steps
        if not f"{step.module}.".startswith(gone)
        for parts in step.costs
    )


def graph_parameters(graph: Graph, kept: Kept | None = None, *, blocks: Sequence[str] = ()) -> int:
    """Elements of all parameters (tied ones once, no buffers), or of what `cut` would leave."""
    shapes, gone = {**graph.shapes, **graph.shapes_of(kept or {})}, tuple(f"{name}." for name in blocks)
    return sum(math.prod(shapes[name]) for name in graph.parameters if not name.startswith(gone))


def unit_cost(graph: Graph, group: Group) -> tuple[int, int]:
    """(parameters, multiply-adds) that go with one unit of ``group`` while everything else is whole.

    Units of one group cost the same. (0, 0) for a group from which nothing may go.
    """
    if group.fixed is not None or group.size < 2:
        return 0, 0
    kept = {group.name: list(range(group.size - 1))}
    return graph_parameters(graph) - graph_parameters(graph, kept), graph_macs(graph) - graph_macs(
        graph, kept
    )


def _elements(x: Labelled, alive: np.ndarray) -> int:
    """Number of elements left of a tensor labelled like ``x``."""
    labelled = {dim for factor in x.factors for dim in factor.dims}
    rigid = math.prod(size for dim, size in enumerate(x.shape) if dim not in labelled)
    return rigid * math.prod(int(alive[factor.ids].sum()) for factor in x.factors)
