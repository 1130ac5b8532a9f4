"""Whether an exported model computes what the training graph computes, and how near the two can be at all.

Rounding makes small differences large: a value next to the border of two levels goes one way or the other with the
last bit of a sum, and later layers see a whole level of difference. So a quantized model differs from *itself* when
its sums are taken in another order, by an amount that belongs to the model and is measured here. An export may differ
by a small multiple of that; one that computes with other grids, other weights or in another order of layers cannot
hide behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NoOpError
from ..quantization.modules import quantized_layers
from .onnx_export import named_outputs

ALWAYS_ALLOWED = 0.01  # of the outputs' size
_MARGIN = 2.0  # times what the model differs from itself
_NOISE = 2.0**-20  # relative, on every weight: about what float32 sums in another order differ by


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Differences between two models' outputs on the same rows, each the root of the mean square over that of the
    training graph's outputs (the largest over its outputs).

    difference: of the exported model.   tolerance: how much is allowed.
    itself:     of the training graph with its weights moved by one part in a million.
    rounding:   of the training graph without rounding of inputs; only where they are rounded while the model runs,
                which engines do in grids of their own (onnxruntime: one for a whole tensor, not one for each row).
    """

    rows: int
    difference: float
    tolerance: float
    itself: float
    rounding: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For artifact.json and summary.json."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def compare(
    model: nn.Module, other: Callable[..., Any], inputs: Tensor | Mapping[str, Tensor], *, what: str
) -> Agreement:
    """How far ``other`` is from ``model`` on the rows ``inputs``.

    raises: NoOpError where it is further than the tolerance: the larger of 1 % and twice what the model differs from
            itself (and once and a half what rounding its inputs changes, where that is done while it runs).
    cost:   two forward passes more than the two that are compared, and a copy of the model.
    """
    model.eval()
    expected = _outputs(model, inputs)
    difference = _difference(_outputs(other, inputs), expected)
    itself = _difference(_outputs(_moved(model), inputs), expected)
    rounding = None
    if _rounds_while_it_runs(model):
        rounding = _difference(_outputs(_without_rounding(model), inputs), expected)
    tolerance = max(ALWAYS_ALLOWED, _MARGIN * itself, 1.5 * (rounding or 0.0))
    rows = len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)
    found = Agreement(rows=rows, difference=difference, tolerance=tolerance, itself=itself, rounding=rounding)
    if not difference <= tolerance:  # not a number either
        raise NoOpError(
            f"export {what}: on {rows} rows its outputs differ from those of the training graph by {difference:.2%} of "
            f"their size; want {tolerance:.2%} or less (with other rounding errors the training graph differs from "
            f"itself by {itself:.2%}); this is a defect of the export, please report it"
        )
    return found


@torch.no_grad()
def _outputs(model: Callable[..., Any], inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return named_outputs(model(**inputs) if isinstance(inputs, Mapping) else model(inputs))


def _difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    sizes = {name: value.double().norm() for name, value in expected.items() if value.is_floating_point()}
    return max(
        float((found[name].double() - expected[name].double()).norm() / size.clamp(min=1e-30))
        for name, size in sizes.items()
    )


def _moved(model: nn.Module) -> nn.Module:
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + _NOISE * torch.randn(parameter.shape, generator=generator))
    return copied


def _rounds_while_it_runs(model: nn.Module) -> bool:
    quantizers = (layer.input_quantizer for layer in quantized_layers(model).values())
    return any(quantizer is not None and quantizer.dynamic for quantizer in quantizers)


def _without_rounding(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    for layer in quantized_layers(copied).values():
        if layer.input_quantizer is not None:
            layer.input_quantizer.enabled = False
    return copied
