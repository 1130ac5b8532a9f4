"""What two runs are compared by: their traces, and the largest differences between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

SQUARES = "squares/"  # Adam's mean squared gradients, among what a trace holds
# A parameter's gradient against the whole model's, root mean squares: below that it is rounding.
_NOISE = 1e-5
LIMITS = {"loss": 1e-4, "gradient norm": 1e-3, "weights": 1e-2, "masks": 1e-3}
"""Largest differences, by name, with which two runs count as one whatever they train."""
_TIMES_ROUNDING = 10.0  # a mesh may differ by as many times what a rounding error a step grows to
_CEILING = {"loss": 5e-2, "gradient norm": 0.2, "weights": 0.5, "masks": 2e-2}


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one proof run left: step → (loss, gradient norm), and the whole model and techniques' state at its end."""

    steps: dict[int, tuple[float, float]]
    tensors: dict[str, Tensor]
    start: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest differences between two traces; relative ones, but for masks (share of bits that differ)."""

    loss: float
    gradient_norm: float
    weights: float
    """Norm of the difference against the norm of how far the reference has moved."""
    masks: float
    noise: tuple[str, ...] = ()
    """Parameters that are not among ``weights``: their gradient is nothing but rounding (a bias before a softmax or
    a normalisation), and Adam makes full steps of it. What they do to the loss is compared like all else."""

    @property
    def values(self) -> dict[str, float]:
        """The four differences by the names that people read."""
        return {
            "loss": self.loss,
            "gradient norm": self.gradient_norm,
            "weights": self.weights,
            "masks": self.masks,
        }

    def or_larger(self, other: Difference) -> Difference:
        """Of each kind the larger one of two differences."""
        return replace(
            self,
            loss=max(self.loss, other.loss),
            gradient_norm=max(self.gradient_norm, other.gradient_norm),
            weights=max(self.weights, other.weights),
            masks=max(self.masks, other.masks),
        )

    def within(self, *, exact: bool = False, rounding: Difference | None = None) -> bool:
        """Whether the runs count as one: bit for bit, or within what float32 sums in another order give.

        rounding: what one rounding error in every weight and step grows to, and in half precision what the same rows do
        in other micro-batches. Where training is chaotic (a high rate, batch normalisation, hard pruning) every
        other order of sums grows as much, and no bug is needed.
        """
        if exact:
            return max(self.values.values()) == 0.0
        return all(value <= _limit(name, rounding) for name, value in self.values.items())


def _limit(name: str, rounding: Difference | None) -> float:
    if rounding is None:
        return LIMITS[name]
    return min(max(LIMITS[name], _TIMES_ROUNDING * rounding.values[name]), _CEILING[name])


def read_trace(folder: Path) -> Trace:
    """What a traced run wrote; of a step that was done twice (after a kill) the last time counts."""
    lines = (folder / "trace.jsonl").read_text().splitlines() if (folder / "trace.jsonl").exists() else []
    steps = {step: (loss, norm) for step, loss, norm in map(json.loads, lines)}
    tensors = {
        f"{file.stem}/{name}": tensor
        for file in sorted(folder.glob("end-*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    start = load_file(folder / "start.safetensors") if (folder / "start.safetensors").exists() else {}
    return Trace(steps=steps, tensors=tensors, start=start)


def compare(reference: Trace, other: Trace) -> Difference:
    """Largest differences; infinite where one trace has a step, a tensor or a shape that the other has not."""
    if reference.steps.keys() != other.steps.keys() or _shapes(reference) != _shapes(other):
        return Difference(
            loss=float("inf"), gradient_norm=float("inf"), weights=float("inf"), masks=float("inf")
        )
    pairs = [(reference.steps[s], other.steps[s]) for s in reference.steps]
    noise = _noise(reference)
    floats = [
        key
        for key, tensor in reference.tensors.items()
        if tensor.is_floating_point() and f"/{SQUARES}" not in key and key.rsplit("/", 1)[1] not in noise
    ]
    bits = [k for k, t in reference.tensors.items() if t.dtype == torch.bool]
    return Difference(
        loss=max((_relative(a[0], b[0]) for a, b in pairs), default=0.0),
        gradient_norm=max((_relative(a[1], b[1]) for a, b in pairs), default=0.0),
        weights=max((_moved(reference, other, key) for key in floats), default=0.0),
        masks=_differing_bits(reference, other, bits),
        noise=tuple(sorted(noise)),
    )


def _noise(trace: Trace) -> set[str]:
    """Parameters whose mean squared gradient at some end of a phase is nothing beside the whole model's."""
    found: set[str] = set()
    for end in {key.split("/", 1)[0] for key in trace.tensors}:
        prefix = f"{end}/{SQUARES}"
        squares = {k.removeprefix(prefix): t for k, t in trace.tensors.items() if k.startswith(prefix)}
        count = sum(t.numel() for t in squares.values())
        mean = sum(float(t.double().sum()) for t in squares.values()) / max(count, 1)
        found |= {name for name, t in squares.items() if t.numel() and float(t.mean()) < _NOISE**2 * mean}
    return found


def _shapes(trace: Trace) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in trace.tensors.items()}


def _relative(reference: float, value: float) -> float:
    return abs(value - reference) / max(abs(reference), 1e-6)


def _moved(reference: Trace, other: Trace, key: str) -> float:
    """‖difference‖ / ‖reference − start‖ of one tensor (against its own norm where it has no start)."""
    here, there = reference.tensors[key].double(), other.tensors[key].double()
    start = reference.start.get(key.split("/", 2)[2])
    # a phase may have removed parts of it since
    away = here - start.double() if start is not None and start.shape == here.shape else here
    return float((there - here).norm() / away.norm().clamp_min(1e-9))


def _differing_bits(reference: Trace, other: Trace, keys: Sequence[str]) -> float:
    differing = sum(int((reference.tensors[k] != other.tensors[k]).sum()) for k in keys)
    return differing / max(sum(reference.tensors[k].numel() for k in keys), 1)
