"""One small training, run by a plain loop: what the callbacks of other libraries must come to as well.

A step is all 24 rows in two micro-batches, so that the order of rows, which each library deals out in its own way,
changes nothing but roundings.
"""

from __future__ import annotations

from typing import Any

import torch
from forgepress.compression import Technique
from forgepress.compression.integrations import Compressor, Phase
from forgepress.compression.pruning.magnitude import Magnitude
from forgepress.compression.pruning.network_surgery import NetworkSurgery
from forgepress.compression.pruning.sparsity_penalty import SparsityPenalty
from torch import Tensor, nn

STEPS, RATE, CLIP = 12, 0.02, 0.25  # the norm of the gradients is above it: clipping is at work
INPUTS = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3


class Net(nn.Module):
    """8 → 16 → 3, with a loss as transformers' models have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1 = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(16, 3)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.fc2(self.relu(self.norm(self.fc1(inputs))))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def phases() -> list[Phase]:
    """Penalties of three kinds and surgery; then what is left of their zeros is kept and more is pruned."""
    first: list[Technique] = [
        SparsityPenalty(kind="elastic", strength=0.05, form="gradient"),
        SparsityPenalty(match="scales", strength=0.05),
        SparsityPenalty(target="activations", match="relu", strength=0.01, form="gradient"),
        NetworkSurgery(sparsity=0.5, every=2),
    ]
    return [
        Phase(techniques=first, steps=0.5),
        Phase(techniques=[Magnitude(sparsity=0.7, ramp="one_shot", begin=1)], steps=4),
    ]


def plain(model: nn.Module, *, steps: int = STEPS, micro_batches: int = 2) -> Compressor:
    """The reference: every call written out."""
    compressor = Compressor(model, phases(), steps=steps, micro_batches=micro_batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for _ in range(steps):
        for rows in torch.arange(24).chunk(micro_batches):
            compressor.before_step(optimizer.param_groups[0]["lr"])
            (model(INPUTS[rows], LABELS[rows])["loss"] / micro_batches).backward()
        compressor.after_backward(CLIP)
        optimizer.step()
        compressor.after_step()
        optimizer.zero_grad()
    compressor.finish()
    return compressor


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], **tolerance: Any) -> None:
    """The same zeros, and the same weights but for roundings."""
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(found[name] == 0, weight == 0), name
        torch.testing.assert_close(found[name], weight, **tolerance)
    assert sum(int((w == 0).sum()) for n, w in wanted.items() if n.startswith("fc")) >= round(0.7 * 176)
