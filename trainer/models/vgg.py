"""A VGG-like network: plain stages of convolution, BatchNorm and ReLU, as slimming and pruning papers use it."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...errors import ConfigError
from ._base import AsImage, BuiltModel, ModelSettings, Size
from ._convolutions import add_convolution, classifier


@dataclass(frozen=True, kw_only=True)
class VGG(ModelSettings):
    """Stages of 3×3 convolutions with BatchNorm and ReLU, 2×2 max-pooling between them, mean, one linear layer.

    Takes [B, C, H, W] or [B, C*H*W]; gives logits [B, classes]. BatchNorm's statistics are those of a whole
    micro-batch, over all data ranks.
    source: Simonyan & Zisserman 2015, arXiv:1409.1556; with BatchNorm and one linear layer as in Liu et al. 2017,
        arXiv:1708.06519, section 4.2.
    """

    facts: ClassVar = {"input_shape": "input_shape", "classes": "classes"}

    input_shape: tuple[Size, Size, Size] = (3, 32, 32)
    """One image [C, H, W]."""
    classes: Size = 10
    stages: tuple[tuple[Size, ...], ...] = ((64, 64), (128, 128), (256, 256))
    """Channels of each convolution, stage by stage."""

    def __post_init__(self) -> None:
        if not self.stages or not all(self.stages):
            raise ConfigError(
                f"model vgg: stages={self.stages!r}; want one stage or more of one width or more"
            )
        if min(self.input_shape[1:]) < 2 ** (len(self.stages) - 1):
            raise ConfigError(
                f"model vgg: input_shape={list(self.input_shape)} cannot be halved {len(self.stages) - 1} times; "
                "want fewer stages"
            )

    def build(self) -> BuiltModel:
        layers: OrderedDict[str, nn.Module] = OrderedDict(image=AsImage(self.input_shape))
        channels, number = self.input_shape[0], 0
        for index, stage in enumerate(self.stages):
            if index:
                layers[f"pool{index}"] = nn.MaxPool2d(2)
            for width in stage:
                number += 1
                add_convolution(layers, number, channels, width)
                channels = width
        return classifier(layers, channels, self.classes, self.input_shape)


MODELS = {"vgg": VGG}
