"""The true global gradient norm, clipping by it, and who is to blame when it is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..compression import Run, Weight
from ..errors import DivergenceError
from ..parallel import Mesh

PARTS = ("pipeline", "shard", "context", "tensor")
"""Mesh axes along which ranks hold different weights; along `replicate` they hold the same."""


def global_norm(run: Run) -> Tensor:
    """Euclidean norm of the whole model's gradient, every distinct shard counted once. 0-dim, the same on all ranks.

    float32, of float64 weights float64: also on a rank that owns none of them.

    cost: one pass over the local gradients; one all-reduce of a number where weights are divided.
    """
    grads = [w.grad for w in run.all_weights if w.owned and w.grad is not None and w.grad.numel()]
    device = run.all_weights[0].local.device if run.all_weights else torch.device("cpu")
    doubles = any(w.local.dtype == torch.float64 for w in run.all_weights)
    square = _square(grads, device).to(torch.float64 if doubles else torch.float32)
    return run.reduce(square, "sum").sqrt()


def _square(grads: list[Tensor], device: torch.device) -> Tensor:
    """Sum of all squares, 0-dim."""
    if all(g.dtype == torch.float32 and g.device.type == "cpu" and g.is_contiguous() for g in grads):
        # On the CPU a dot product takes a third less time than torch's norm, and a number less than a tensor.
        flat = [g.view(-1) for g in grads]
        return torch.tensor(sum(g.dot(g).item() for g in flat), dtype=torch.float32, device=device)
    return torch.stack(torch._foreach_norm(grads)).square().sum()


def clip(weights: Sequence[Weight], norm: Tensor, limit: float) -> None:
    """Scale all gradients so that their global ``norm`` is at most ``limit``."""
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    grads = [w.grad for w in weights if w.grad is not None]
    if grads:  # a stage may have nothing to train
        torch._foreach_mul_(grads, factor)


def blame(run: Run, names: Sequence[str], mesh: Mesh) -> str:
    """Name of the first parameter, in the model's order, whose gradient is not finite on any rank. Collective."""
    order = {name: index for index, name in enumerate(names)}
    first = len(names)
    for weight in run.all_weights:
        if weight.grad is not None and not bool(torch.isfinite(weight.grad).all()):
            first = min(first, order[weight.name])
    worst = int(mesh.reduce(torch.tensor(first, device=mesh.device), "min"))
    return names[worst] if worst < len(names) else "no parameter (the loss alone)"


def diverged(step: int, phase: str, loss: float, culprit: str) -> DivergenceError:
    """The error for a step whose loss or gradient is not finite."""
    return DivergenceError(
        f"step {step} (phase {phase}): the gradient is not finite, first in {culprit}; loss {loss:g}. "
        "Lower optimizer.lr, set optimizer.clip_norm, look at the data of this step, or let such steps be left "
        "out with optimizer.nonfinite: skip"
    )
