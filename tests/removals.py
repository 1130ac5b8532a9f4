"""Small nets from which whole channels, neurons and heads are removed, each with all that the meshes need to cut it."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..parallel import Layout
from ..trainer.models._base import AsImage
from ..trainer.models.gpt import Block


class Rows(nn.Module):
    """[B, 64] or [B, 1, 8, 8] → [B, 8, 8]: an image as eight tokens of eight features."""

    def forward(self, image: Tensor) -> Tensor:
        return image.reshape(len(image), 8, 8)


class Mean(nn.Module):
    """[B, T, W] → [B, W]."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


def convolutions() -> nn.Module:
    """8 × 8 digits: two convolutions with BatchNorm, flattened into an MLP that the tensor axis divides."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        image=AsImage((1, 8, 8)),
        conv1=nn.Conv2d(1, 12, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(12),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(12, 20, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(20),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),  # 20 channels become 80 features: four of each
        fc1=nn.Linear(80, 24),
        relu3=nn.ReLU(),
        fc2=nn.Linear(24, 10),
    )
    return _chain(layers, {"fc1": "column", "fc2": "row"})


def attention() -> nn.Module:
    """8 × 8 digits as eight tokens: a transformer block of four heads and 48 neurons."""
    block = Block(16, 4, 3, 0.0)
    block.attention.key = nn.Linear(
        16, 16, bias=False
    )  # softmax does not see it: Adam would blow up its rounding
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        rows=Rows(),
        embed=nn.Linear(8, 16),
        block=block,
        norm=nn.LayerNorm(16),
        mean=Mean(),
        head=nn.Linear(16, 10),
    )
    column = dict.fromkeys((f"block.attention.{name}" for name in ("query", "key", "value")), "column")
    return _chain(
        layers, {**column, "block.attention.out": "row", "block.mlp.up": "column", "block.mlp.down": "row"}
    )


def _chain(layers: OrderedDict[str, nn.Module], tensor_plan: dict[str, str]) -> nn.Module:
    module = nn.Sequential(layers)
    module.layout = Layout(order=tuple(layers), tensor_plan=tensor_plan)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return module
