"""A small network of convolution, BatchNorm and ReLU: the smallest thing that network slimming can slim."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...parallel.layout import Layout
from ._base import AsImage, BuiltModel, ModelSettings, Size


@dataclass(frozen=True, kw_only=True)
class ConvBatchNorm(ModelSettings):
    """3×3 convolutions with BatchNorm, ReLU and 2×2 max-pooling, then a global mean and one linear layer.

    Takes [B, C, H, W] or [B, C*H*W]; gives logits [B, classes]. Pooling stops where the image is smaller than
    2 × 2. BatchNorm's statistics are those of the rows that one rank sees in one micro-batch.
    """

    facts: ClassVar = {"input_shape": "input_shape", "classes": "classes"}

    input_shape: tuple[Size, Size, Size] = (1, 28, 28)
    """One image [C, H, W]."""
    classes: Size = 10
    widths: tuple[Size, ...] = (32, 64, 128)
    """Channels of each convolution."""

    def build(self) -> BuiltModel:
        channels, height, width = self.input_shape
        layers: OrderedDict[str, nn.Module] = OrderedDict(image=AsImage(self.input_shape))
        for number, filters in enumerate(self.widths, start=1):
            layers[f"conv{number}"] = nn.Conv2d(
                channels, filters, 3, padding=1, bias=False
            )  # BatchNorm has one
            layers[f"bn{number}"] = nn.BatchNorm2d(filters)
            layers[f"relu{number}"] = nn.ReLU()
            if min(height, width) >= 2:
                layers[f"pool{number}"] = nn.MaxPool2d(2)
                height, width = height // 2, width // 2
            channels = filters
        layers["mean"] = nn.AdaptiveAvgPool2d(1)  # [B, channels, 1, 1]
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, self.classes)
        return BuiltModel(
            module=nn.Sequential(layers),
            layout=Layout(order=tuple(layers)),  # tensor parallel cuts linear layers: here is none worth it
            task="classification",
            spec={},
            input_shape=self.input_shape,
        )


MODELS = {"conv_bn": ConvBatchNorm}
