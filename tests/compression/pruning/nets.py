"""Small nets with numbers of all sizes and signs, for the tests of what removes units."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


def mlp() -> nn.Sequential:
    """6 → 20 → 12 → 4 with BatchNorm before every ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        fc1=nn.Linear(6, 20),
        bn1=nn.BatchNorm1d(20),
        relu1=nn.ReLU(),
        fc2=nn.Linear(20, 12),
        bn2=nn.BatchNorm1d(12),
        relu2=nn.ReLU(),
        fc3=nn.Linear(12, 4),
    )
    return shaken(nn.Sequential(layers))


def convolutions() -> nn.Sequential:
    """[B, 2, 5, 5]: ten and fourteen channels, flattened to nine features each."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(2, 10, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(10),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(10, 14, 3, bias=False),
        bn2=nn.BatchNorm2d(14),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc=nn.Linear(14 * 9, 3),
    )
    return shaken(nn.Sequential(layers))


def shaken(model: nn.Sequential, seed: int = 3) -> nn.Sequential:
    """``model`` with random numbers everywhere, also in running statistics, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.1)
    return model.eval()


def rows(*shape: int) -> Tensor:
    """Random inputs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def state_for(*shape: int) -> dict[str, dict[str, Tensor]]:
    """What ``finalize`` gets besides the model: an example of one row."""
    return {"example": {"0": torch.zeros(1, *shape)}}
