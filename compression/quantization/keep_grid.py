"""Keep the grids that an earlier phase delivered, whatever this phase does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..run import Run
from ..technique import Check, Record, State, Technique
from ..weight import Weight
from ._weights import off_here, project, scale_of, zero_point_of
from .modules import Quantized, quantized_layers


@dataclass(frozen=True, kw_only=True)
class KeepGrid(Technique):
    """Weights that a phase has put on grids go on learning, but only ever compute with values on the same grids.

    A run puts it last in every phase after one that delivered grids, for those weights that no other technique of
    the phase puts on a grid of its own.

    source: the straight-through projection of `quantization.aware_training`, with grids that stay (Bengio et al. 2013,
        arXiv:1308.3432).
    cost: four bytes a weight for the dense copy; about five elementwise passes a step.
    finalize: delivers the same grids.
    """

    bytes_per_weight: ClassVar[float] = 4.0
    trains: ClassVar[bool | None] = None
    contract: ClassVar[tuple[dict[str, Any], ...]] = ()  # there is nothing to keep in a first phase

    def before_step(self, run: Run) -> None:
        """Take this rank's part of the grids that the layers hold, before the first step moves anything."""
        if "taken" in run.memory:
            return
        for weight, layer in held(run, self.match):
            scale, zero_point = layer.weight_scale, layer.weight_zero_point
            assert scale is not None
            granularity = granularity_of(layer)
            scale_of(run, weight, granularity).copy_(_rows_here(weight, scale))
            if zero_point is not None:
                zero_point_of(run, weight, granularity).copy_(_rows_here(weight, zero_point))
        run.memory["taken"] = True

    def after_step(self, run: Run) -> None:
        """Let the model compute with the nearest values on the grids."""
        with torch.no_grad():
            for weight, layer in held(run, self.match):
                project(run, weight, granularity_of(layer), layer.weight_bits, layer.weight_symmetric)

    def checks(self, run: Run) -> list[Check]:
        """No weight has left its grid."""
        if "taken" not in run.memory:
            return []
        pairs = held(run, self.match)
        off = [
            off_here(run, weight, granularity_of(layer), layer.weight_bits, layer.weight_symmetric)
            for weight, layer in pairs
        ]
        count = float(run.total([weight for weight, _ in pairs], off))
        return [Check(quantity="weights off their grid", requested=0.0, achieved=count, at_least=False)]

    def finalize(self, model: nn.Module, state: State) -> Record:
        """The layers hold their grids already; name the parameters."""
        names = {layer.weight_name for layer in quantized_layers(model).values()}
        return {"grids": [name for name in self.matched(model) if name in names]}


def held(run: Run, match: str | tuple[str, ...]) -> list[tuple[Weight, Quantized]]:
    """The weights held here whose layer has a grid, with the (first) layer."""
    layers: dict[str, Quantized] = {}
    for module in run.modules.values():
        if isinstance(module, Quantized) and module.weight_scale is not None:
            layers.setdefault(module.weight_name, module)
    return [(w, layers[w.name]) for w in run.weights(match) if w.name in layers]


def granularity_of(layer: Quantized) -> str | int:
    """What there is one step size of in a delivered layer: it may be finer than asked for, after folding."""
    assert layer.weight_scale is not None
    rows, groups = layer.weight_scale.shape[:2]
    if groups > 1:
        return layer.group_size
    return "tensor" if rows == 1 else "channel"


def _rows_here(weight: Weight, values: Tensor) -> Tensor:
    """The rows of step sizes or zero points that go with the local part."""
    return values if len(values) == 1 else values.index_select(0, weight.start(0).to(values.device))
