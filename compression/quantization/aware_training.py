"""Quantization-aware training: the model computes on grids while its dense weights learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..pruning._mask import refuse_beyond
from ..run import Run
from ..technique import Check
from ..weight import Weight
from ._quantization import Quantization
from ._weights import (
    grid_here,
    largest,
    project,
    renew_grid,
    scale_of,
    sizes_of,
    total,
)
from .activations import ActivationQuantizer
from .common_input import CommonInput
from .grid import levels
from .observers import observe
from .step_size import first_step_size, follow_, pulls


@dataclass(frozen=True, kw_only=True)
class AwareTraining(Quantization):
    """Train with weights, and what flows into layers, rounded to grids of few bits.

    From step ``begin`` on the model computes with the nearest values on each weight's grid; the optimizer moves
    dense ones with the gradient taken there (straight-through), and the grid follows their range, or learns its
    step size. Ranges of inputs are observed from the first step on, and rounded from ``begin`` on (the first step of
    all only observes). Exact zeros of weights stay zeros, so that it can follow a pruning technique in the list.
    Batch normalisations that directly follow a layer go on with their running averages from ``freeze`` on.

    source: Jacob et al. 2017, arXiv:1712.05877 (training with rounding, delayed start, frozen normalisation); Bengio
        et al. 2013, arXiv:1308.3432 (straight-through); Esser et al. 2020, arXiv:1902.08153 (learned step sizes).
    cost: four bytes a weight for the dense copy and about seven elementwise passes over the weights a step, whatever
        the number of micro-batches; for inputs of layers four passes and four bytes a value in each micro-batch, two
        more while observing, and an all-reduce of two numbers a layer. Learned: five passes more over the weights.
    finalize: delivers layers whose weights are exactly on their grid, with step sizes beside them, and whose inputs
        are rounded; batch normalisations that directly follow are folded in. Later phases keep the grids.
    """

    activations: Literal["moving_average", "min_max", "learned", "dynamic", "none"] = "moving_average"
    """How the range of a layer's inputs is found: moving average or all of what was seen; ``learned`` from the
    moving average at ``begin``; ``dynamic``: of each token or image by itself; ``none``: inputs stay float."""
    step_size: Literal["range", "learned"] = "range"
    """Of weights: from their range in each step, or learned (for 4 and 2 bits; symmetric grids only)."""
    begin: float | int = 0
    """First step that computes on grids: a float is a fraction of the phase, an int a step."""
    freeze: float | int = 0.75
    """When ranges of inputs and statistics of batch normalisations stay as they are."""

    bytes_per_weight: ClassVar[float] = 4.0
    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {"begin": 2},
        {
            "weight_bits": 4,
            "granularity": 16,
            "step_size": "learned",
            "activations": "learned",
            "match": ("weights", "!fc3.*"),
        },
    )

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        super().__post_init__()
        if self.step_size == "learned" and not self.symmetric_weights:
            raise ValueError(
                "step_size=learned with symmetric_weights=False: want symmetric_weights=True, or range"
            )

    # ── the step

    def before_step(self, run: Run) -> None:
        """What is observed, rounded and frozen in this step. raises: ConfigError for a begin that never comes."""
        if run.step == 1:
            refuse_beyond(run, "quantization.aware_training.begin", self.begin)
            if self._begun(run, 1):  # no step before has written working values
                with torch.no_grad():
                    self._project(run)
        frozen = self._frozen(run)
        common = CommonInput()
        for quantizer in self.quantizers(run):
            quantizer.common = common
            if not quantizer.ready:
                quantizer.ready = bool(quantizer.steps > 0)
            quantizer.enabled = self._begun(run, run.step) and quantizer.ready
            learning = quantizer.learned and quantizer.enabled
            quantizer.observing = not (quantizer.dynamic or learning or frozen)
            quantizer.learning = learning and not frozen
            if quantizer.enabled and not quantizer.dynamic and quantizer.zero_point.device.type == "cpu":
                # elsewhere one would wait for the device
                quantizer.numbers = float(quantizer.scale), int(quantizer.zero_point)
            quantizer.unit = lambda run=run: run.loss_scale * run.now.seed
        if frozen:
            freeze_norms(run)

    def after_backward(self, run: Run) -> None:
        """Learned step sizes follow what the loss wants; clipped weights take no part in the step."""
        if not self._begun(run, run.step) or "learned" not in (self.step_size, self.activations):
            return
        run.memory["updates"] = run.memory.get("updates", 0) + 1
        if self.step_size == "learned":
            for weight, bits in self.weights(run):
                self._learn(run, weight, bits)
        learning = [quantizer for quantizer in self.quantizers(run) if quantizer.learning]
        if learning:
            learn_inputs(run, learning, count=run.memory["updates"], progress=self._progress(run))

    def after_step(self, run: Run) -> None:
        """Ranges follow what the ranks have seen; the next step computes with weights on their grid."""
        quantizers = self.quantizers(run)
        seeing = [quantizer for quantizer in quantizers if quantizer.observing]
        observe(seeing, run, "min_max" if self.activations == "min_max" else "moving_average")
        for quantizer in quantizers:
            quantizer.observing, quantizer.numbers, quantizer.common = (
                False,
                None,
                None,
            )  # evaluation is not looked at
        if self._begun(run, run.step + 1):
            self._project(run)

    def checks(self, run: Run) -> list[Check]:
        """From ``begin`` on: the bits of the weights, and that every layer's input has been seen."""
        if not self._begun(run, run.step + 1):
            return []
        return self.grid_checks(run) + self.input_checks(run)

    # ── when

    def _begun(self, run: Run, step: int) -> bool:
        return step >= max(run.at(self.begin), 1)

    def _frozen(self, run: Run) -> bool:
        return run.step > run.at(self.freeze)

    def _progress(self, run: Run) -> float:
        begin = max(run.at(self.begin), 1)
        return (run.step - begin) / max(run.steps - begin, 1)

    # ── weights

    def _project(self, run: Run) -> None:
        for weight, bits in self.weights(run):
            if self.step_size == "range":
                renew_grid(run, weight, self.granularity, bits, self.symmetric_weights)
            elif "begun" not in run.memory:
                self._start(run, weight, bits)
            project(run, weight, self.granularity, bits, self.symmetric_weights)
        run.memory["begun"] = True

    def _start(self, run: Run, weight: Weight, bits: int) -> None:
        """First step sizes. Sums in float64: they come out the same to all the bits that are kept on any mesh."""
        magnitude = weight.local.abs()
        sums = total(weight, magnitude.double(), self.granularity)
        number = total(weight, torch.ones_like(magnitude), self.granularity)
        first = first_step_size(largest(weight, magnitude, self.granularity), (sums / number).float(), bits)
        scale_of(run, weight, self.granularity).copy_(first)

    def _learn(self, run: Run, weight: Weight, bits: int) -> None:
        if weight.grad is None:
            return
        scale, _ = grid_here(run, weight, self.granularity, True)
        lowest, highest = levels(bits, True)
        dense = weight.dense
        inside = (dense > (lowest - 0.5) * scale).logical_and_(dense < (highest + 0.5) * scale)
        inside = inside.view(torch.uint8)
        pull = total(weight, pulls(dense, weight.local, weight.grad, inside), self.granularity)
        sizes = sizes_of(weight, self.granularity)
        mean, square = (
            run.buffer(weight, key, fill=0.0, dtype=torch.float32, sizes=sizes)
            for key in ("pull_mean", "pull_square")
        )
        weight.grad.mul_(inside)
        scales = [scale_of(run, weight, self.granularity)]
        count, progress = run.memory["updates"], self._progress(run)
        follow_(scales, [pull], [mean], [square], count=count, progress=progress)


def learn_inputs(run: Run, quantizers: Sequence[ActivationQuantizer], *, count: int, progress: float) -> None:
    """Move the step sizes of inputs by what all ranks of the stage have gathered for them in the step.

    Ranks along the tensor axis have parts of a row-divided layer's input, whose pulls add up; of other inputs each of
    them has the whole, with the whole gradient, and that counts once.
    cost: one all-reduce of a number for each quantizer.
    """
    own = [quantizer.take_pull() / (1 if quantizer.in_parts else run.copies) for quantizer in quantizers]
    pulled = run.over_rows(torch.stack(own), "sum")
    scales = [quantizer.scale for quantizer in quantizers]
    means, squares = [q.pull_mean for q in quantizers], [q.pull_square for q in quantizers]
    follow_(scales, list(pulled.unbind()), means, squares, count=count, progress=progress)


def freeze_norms(run: Run) -> None:
    """Let the batch normalisations that will be folded go on with their running averages."""
    for module in run.modules.values():
        if getattr(module, "follows", None) is not None and module.training:
            module.eval()
