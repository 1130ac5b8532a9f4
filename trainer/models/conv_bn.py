"""A small network of convolution, BatchNorm and ReLU: the smallest thing that network slimming can slim."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ._base import AsImage, BuiltModel, ModelSettings, Size
from ._convolutions import add_convolution, classifier


@dataclass(frozen=True, kw_only=True)
class ConvBatchNorm(ModelSettings):
    """3×3 convolutions with BatchNorm, ReLU and 2×2 max-pooling, then a global mean and one linear layer.

    Takes [B, C, H, W] or [B, C*H*W]; gives logits [B, classes]. Pooling stops where the image is smaller than
    2 × 2. BatchNorm's statistics are those of a whole micro-batch, over all data ranks.
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
            add_convolution(layers, number, channels, filters)
            if min(height, width) >= 2:
                layers[f"pool{number}"] = nn.MaxPool2d(2)
                height, width = height // 2, width // 2
            channels = filters
        return classifier(layers, channels, self.classes, self.input_shape)


MODELS = {"conv_bn": ConvBatchNorm}
