"""Quantization after training: look at activations for a few batches, then put weights and inputs on grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..run import Run
from ..technique import Check
from ._quantization import Quantization
from ._weights import project, renew_grid, search_grid
from .activations import ActivationQuantizer
from .observers import conclude, observe


@dataclass(frozen=True, kw_only=True)
class PostTraining(Quantization):
    """Calibrate and quantize: the phase runs forward passes only, and nothing is trained.

    While the phase runs, observers watch what flows into each layer, in float. After its last step weights move to
    the nearest level of their grid and inputs are rounded, so that what the phase is scored by at its end is the
    quantized model. Four bits and fewer want ``aware_training`` instead.

    source: Jacob et al. 2017, arXiv:1712.05877 (affine grids, folding); Krishnamoorthi 2018, arXiv:1806.08342
        (channels, ranges).
    cost: two passes over the inputs of each layer while calibrating (percentile and mse: a histogram); no memory
        for each weight.
    finalize: delivers layers whose weights are exactly on their grid, with step sizes beside them, and whose inputs
        are rounded; batch normalisations that directly follow are folded in. Later phases keep the grids.
    """

    activations: Literal["min_max", "moving_average", "percentile", "mse", "dynamic", "none"] = "min_max"
    """How the range of a layer's inputs is found: all that was seen, its moving average, the middle ``percentile``
    percent, the one with the least squared error; ``dynamic``: of each token or image by itself; ``none``: inputs
    stay float."""
    percentile: float = 99.99
    weight_range: Literal["min_max", "mse"] = "min_max"
    """The whole range of the weights, or the share of it whose grid has the least squared error."""

    trains: ClassVar[bool | None] = False
    contract: ClassVar[tuple[dict[str, Any], ...]] = ({"activations": "percentile", "weight_bits": 4},)

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        super().__post_init__()
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(f"percentile={self.percentile}: want more than 50 and at most 100")

    def before_step(self, run: Run) -> None:
        """Watch what flows into the layers, as it is without quantization."""
        for quantizer in self.quantizers(run):
            quantizer.observing, quantizer.enabled = not quantizer.dynamic, False
            quantizer.rows = lambda now=run.now: now.valid

    def after_step(self, run: Run) -> None:
        """Bring together what the ranks have seen; after the last step, put weights and inputs on their grids."""
        quantizers = self.quantizers(run)
        if self.activations not in ("none", "dynamic"):
            observe(quantizers, run, self.activations)
        for quantizer in quantizers:
            quantizer.observing = False
        if run.step == run.steps:
            self._quantize(run, quantizers)

    def checks(self, run: Run) -> list[Check]:
        """Every layer's input has been seen; at the end, the bits of the weights."""
        return self.input_checks(run) + (self.grid_checks(run) if run.step >= run.steps else [])

    def _quantize(self, run: Run, quantizers: list[ActivationQuantizer]) -> None:
        find = search_grid if self.weight_range == "mse" else renew_grid
        for weight, bits in self.weights(run):
            find(run, weight, self.granularity, bits, self.symmetric_weights)
            project(run, weight, self.granularity, bits, self.symmetric_weights)
        for quantizer in quantizers:
            if self.activations in ("percentile", "mse"):
                conclude(quantizer, self.activations, self.percentile)
            quantizer.enabled = True
