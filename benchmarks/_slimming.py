"""The trainings that `slimming_step_cost.py` compares: one convolutional net, ours and Torch-Pruning's regularizers."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from forgepress.benchmarks import _loops
from forgepress.benchmarks._turns import Peer, Turns
from forgepress.compression import Run, Technique
from torch import nn

TECHNIQUES: dict[str, dict[str, Any] | None] = {
    "without": None,
    "slimming": {"name": "pruning.network_slimming"},
    "group lasso of filters": {"name": "pruning.sparsity_penalty", "kind": "group", "form": "gradient"},
    "Torch-Pruning, scales": {"name": "forgepress.benchmarks._slimming:TorchPruning"},
    "Torch-Pruning, groups": {"name": "forgepress.benchmarks._slimming:TorchPruning", "groups": True},
}


@dataclass(frozen=True, kw_only=True)
class TorchPruning(Technique):
    """Torch-Pruning's sparse training as it is documented: ``regularize`` between backward and the step."""

    groups: bool = False

    changes_model: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> None:
        """Its pruner on the live model, with the classifier left whole."""
        import torch_pruning

        kind = torch_pruning.pruner.GroupNormPruner if self.groups else torch_pruning.pruner.BNScalePruner
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        example = torch.zeros(1, 1, 28, 28)
        pruner = kind(model, example, importance=importance, reg=1e-4, ignored_layers=[last])
        object.__setattr__(self, "_pruner", (pruner, model))

    def after_backward(self, run: Run) -> None:
        """Add to the gradients."""
        pruner, model = self._pruner  # pyright: ignore[reportAttributeAccessIssue]
        pruner.regularize(model)


def train(turns: Turns, *, technique: dict[str, Any] | None) -> None:
    """The whole Trainer with one of them."""
    _loops.train(turns, model="conv_bn", flatten=False, technique=technique)


PEERS: dict[str, Peer] = {label: partial(train, technique=values) for label, values in TECHNIQUES.items()}
