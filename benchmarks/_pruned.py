"""The trainings that `technique_overhead.py` compares: LeNet-5 with one technique each, and a peer's masks by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from forgepress.benchmarks import _loops
from forgepress.benchmarks._data import mnist
from forgepress.benchmarks._loops import BATCH, RATE
from forgepress.benchmarks._turns import Peer, Turns
from forgepress.trainer.models import build_model
from torch import nn
from torch.nn.utils import prune

ACTIVATIONS = {"target": "activations", "form": "gradient", "match": ["pool*", "relu3"]}
TECHNIQUES: dict[str, dict[str, Any]] = {
    "magnitude": {"name": "pruning.magnitude", "sparsity": 0.95},
    "magnitude, 2:4 in fc1": {"name": "pruning.magnitude", "sparsity": "2:4", "match": ["fc1.weight"]},
    "surgery": {"name": "pruning.network_surgery", "sparsity": 0.95},
    "L1, gradient": {"name": "pruning.sparsity_penalty", "form": "gradient"},
    "L1, proximal": {"name": "pruning.sparsity_penalty"},
    "group lasso of rows, proximal": {"name": "pruning.sparsity_penalty", "kind": "group"},
    "L1 on activations": {"name": "pruning.sparsity_penalty", **ACTIVATIONS},
}


def with_technique(settings: dict[str, Any], turns: Turns) -> None:
    """The whole Trainer with one technique."""
    _loops.train(turns, model="lenet_5", flatten=False, technique=settings)


PEERS: dict[str, Peer] = {label: partial(with_technique, values) for label, values in TECHNIQUES.items()}


def by_hand(turns: Turns) -> None:
    """LeNet-5 in a plain loop."""
    _plain(turns, lambda model: None)


def by_hand_masked(turns: Turns) -> None:
    """The plain loop with torch.nn.utils.prune: masks that were made once are multiplied in at every forward."""
    _plain(turns, _mask)


def _mask(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            prune.l1_unstructured(module, "weight", amount=0.95)


def _plain(turns: Turns, change: Callable[[nn.Module], None]) -> None:
    inputs, targets = mnist(turns.folder, flatten=False)
    model = build_model("lenet_5", seed=0).module
    change(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    while True:
        order = torch.randperm(len(inputs))
        for begin in range(0, len(inputs) - BATCH, BATCH):
            turns()
            index = order[begin : begin + BATCH]
            loss = F.cross_entropy(model(inputs.index_select(0, index)), targets.index_select(0, index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
