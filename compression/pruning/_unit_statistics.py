"""What data says about units, gathered while training: Taylor terms of their makers, energy of what readers get."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..placement import is_divided
from ..run import Run
from ..weight import Weight

TAYLOR, ENERGY = "taylor", "energy"
_MEMORY = 0.98  # of a running mean over steps: some fifty steps count, so that what the weights were long ago does not

# What hooks saw in the present step, per run and weight: [2, inputs], sums of squares and how many. Not state: it is
# added up over ranks and emptied before the step ends.
_SEEN: WeakKeyDictionary[Run, dict[str, Tensor]] = WeakKeyDictionary()


def out_dim(module: nn.Module | None) -> int:
    """The dim of the module's weight that numbers what it makes: 1 where inputs come first."""
    inputs_first = isinstance(module, _ConvTransposeNd | nn.Embedding) or type(module).__name__ == "Conv1D"
    return 1 if inputs_first else 0


def gather_taylor(run: Run, match: str | tuple[str, ...]) -> None:
    """Add this step's (Σ weight · gradient)² of every row that makes a unit to its running mean. After backward.

    cost: one elementwise pass over the weights, and one all-reduce of a vector for each weight whose rows are cut.
    """
    for weight in run.weights(match):
        if weight.grad is None or len(weight.shape) < 2:
            continue
        kept = out_dim(run.module(weight.name.rpartition(".")[0]))
        others = [dim for dim in range(len(weight.shape)) if dim != kept]
        change = weight.sum(weight.local * weight.grad, others)
        mean = run.buffer(weight, TAYLOR, fill=0.0, dtype=torch.float32, sizes=dict.fromkeys(others, 1))
        mean.lerp_(change.float().square(), 1.0 - _MEMORY)


def watch_energy(run: Run) -> None:
    """Hook every linear layer and ungrouped convolution held here whose weight is trained."""
    seen = _SEEN.setdefault(run, {})
    for weight in run.weights("weights"):
        name = weight.name.rpartition(".")[0]
        module = run.module(name)
        if _reads_units(module):
            inputs = weight.shape[_in_dim(module)]
            seen[weight.name] = torch.zeros(2, inputs, device=weight.local.device)
            run.hook(name, _Watch(run, weight))


def gather_energy(run: Run) -> None:
    """Add this step's mean squares of every input of the watched layers to their running means. Ends the step.

    cost: one all-reduce of two numbers for each input feature of the stage; the hooks a pass over activations.
    """
    seen = _SEEN.get(run)
    if not seen:
        return
    together = run.over_rows(torch.cat([x.flatten() for x in seen.values()]), "sum")
    pieces = together.split([x.numel() for x in seen.values()])
    weights = {w.name: w for w in run.weights("weights")}
    for (name, here), piece in zip(seen.items(), pieces, strict=True):
        squares, count = piece.view(2, -1)
        weight, kept = weights[name], _in_dim(run.module(name.rpartition(".")[0]))
        others = [dim for dim in range(len(weight.shape)) if dim != kept]
        mean = run.buffer(weight, ENERGY, fill=0.0, dtype=torch.float32, sizes=dict.fromkeys(others, 1))
        held = (squares / count.clamp_min(1.0)).index_select(0, weight.start(kept).to(squares.device))
        mean.lerp_(held.view(mean.shape), 1.0 - _MEMORY)
        here.zero_()


class _Watch:
    """A forward hook that adds up squares of a layer's inputs, of real rows only."""

    def __init__(self, run: Run, weight: Weight) -> None:
        self._run, self._weight = run, weight

    def __call__(self, module: nn.Module, args: Sequence[Tensor], output: object) -> None:
        x = args[0].detach()
        x = (x.to_local() if is_divided(x) else x).float()
        valid = self._run.now.valid
        if valid is not None and len(valid) == len(x):
            x = x[valid]
        x = x.movedim(1, -1) if isinstance(module, _ConvNd) else x  # features last
        x = x.reshape(-1, x.shape[-1])
        seen = _SEEN[self._run][self._weight.name]
        held = slice(None)
        if x.shape[1] != seen.shape[1]:  # the tensor axis gives this rank some of the features
            held = self._weight.start(_in_dim(module)).to(x.device)
        # a rank that holds all features counts them all: sums and counts grow alike, and their ratio is the mean
        seen[0, held] += x.square().sum(dim=0)
        seen[1, held] += len(x)


def _reads_units(module: nn.Module | None) -> bool:
    if isinstance(module, _ConvNd):
        return module.groups == 1
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _in_dim(module: nn.Module | None) -> int:
    return 1 - out_dim(module)
