"""What the convolutional classifiers share: one convolution with its normalisation, and the way from maps to logits."""

from collections import OrderedDict

from torch import nn

from ...parallel.layout import Layout
from ._base import BuiltModel

Layers = OrderedDict[str, nn.Module]


def add_convolution(layers: Layers, number: int, channels: int, width: int) -> None:
    """``conv<number>``, ``bn<number>``, ``relu<number>``: a 3×3 convolution that keeps height and width."""
    layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)  # BatchNorm has one
    layers[f"bn{number}"] = nn.BatchNorm2d(width)
    layers[f"relu{number}"] = nn.ReLU()


def classifier(layers: Layers, channels: int, classes: int, input_shape: tuple[int, int, int]) -> BuiltModel:
    """The network of ``layers``, which end in [B, channels, H, W], with a mean over places and one linear layer."""
    layers["mean"] = nn.AdaptiveAvgPool2d(1)  # [B, channels, 1, 1]
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return BuiltModel(
        module=nn.Sequential(layers),
        layout=Layout(order=tuple(layers)),  # tensor parallel cuts linear layers: here is none worth it
        task="classification",
        spec={},
        input_shape=input_shape,
    )
