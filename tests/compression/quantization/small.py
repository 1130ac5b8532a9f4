"""A small network, a loop around it, and its delivery, for the tests of quantization on one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from forgepress.compression import Chain, Record, Run, Technique, weights_of
from torch import Tensor, nn

ROWS, FEATURES, CLASSES = 64, 10, 5


def network(seed: int = 0) -> nn.Sequential:
    """10 → 17 → 12 → 5: no size that a group of 4 divides throughout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, 17), nn.ReLU(), nn.Linear(17, 12), nn.ReLU(), nn.Linear(12, CLASSES)
    )


def convolutions(seed: int = 0) -> nn.Sequential:
    """Convolutions with batch normalisation whose averages and factors are not those of the beginning."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, CLASSES),
    )  # fmt: skip
    with torch.no_grad():
        for norm in model:
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2.0)
                norm.weight.uniform_(-1.5, 1.5)
                norm.bias.normal_()
    return model


def rows(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((ROWS, *(shape or (FEATURES,))), generator=generator)
    return x, torch.randint(0, CLASSES, (ROWS,), generator=generator)


class Training:
    """Techniques at work on a model; `step` takes one optimizer step."""

    def __init__(
        self,
        model: nn.Module,
        techniques: Sequence[Technique],
        *,
        steps: int,
        lr: float = 0.01,
        pieces: int = 1,
    ) -> None:
        for technique in techniques:
            technique.prepare(model)
        self.model, self.techniques, self.pieces = model, techniques, pieces
        held = dict(model.named_parameters())
        run = Run(weights_of(held), steps=steps, modules=dict(model.named_modules()))
        self.chain = Chain(techniques, run)
        self.chain.set_up()
        self.optimizer = torch.optim.SGD(held.values(), lr=lr)

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step on these rows, in as many pieces; returns the mean loss."""
        self.model.train()
        self.chain.before_step(self.optimizer.param_groups[0]["lr"])
        total = 0.0
        for x_piece, y_piece in zip(x.chunk(self.pieces), y.chunk(self.pieces), strict=True):
            loss = F.cross_entropy(self.model(x_piece), y_piece, reduction="sum") / len(x)
            loss.backward()
            total += float(loss.detach())
        self.chain.after_backward()
        self.chain.before_update()
        self.optimizer.step()
        self.chain.after_step()
        self.optimizer.zero_grad()
        return total

    def steps(self, count: int, *shape: int, each: Callable[[int], Any] = lambda step: None) -> None:
        """Steps on rows of their own; ``each`` is called after every one."""
        for step in range(self.chain.run.step + 1, self.chain.run.step + count + 1):
            self.step(*rows(step, *shape))
            each(step)

    def deliver(self) -> list[Record]:
        """End the phase as a run does."""
        chain = self.chain
        chain.demand()
        chain.finish()
        states = [
            {key: {n: t for n, (_, t) in chain.buffers(i, key).items()} for key in technique.delivers}
            for i, technique in enumerate(self.techniques)
        ]
        return [t.finalize(self.model, s) for t, s in zip(self.techniques, states, strict=True)]
