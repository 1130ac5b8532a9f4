"""The two LeNets that pruning papers measure themselves on."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...errors import ConfigError
from ...parallel.layout import Layout
from ._base import AsImage, BuiltModel, ModelSettings, Size


@dataclass(frozen=True, kw_only=True)
class LeNet300100(ModelSettings):
    """LeNet-300-100: two hidden layers of 300 and 100 units with ReLU; 266,610 parameters for 784 → 10.

    Takes [B, 784] or [B, 1, 28, 28]; gives logits [B, classes].
    source: LeCun et al. 1998, Gradient-based learning applied to document recognition, section III.
    """

    facts: ClassVar = {"input_shape": "input_shape", "classes": "classes"}

    input_shape: tuple[Size, ...] = (784,)
    """One row; flattened inside."""
    classes: Size = 10
    hidden: tuple[Size, Size] = (300, 100)

    def build(self) -> BuiltModel:
        first, second = self.hidden
        module = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),  # [B, …] → [B, inputs]
                fc1=nn.Linear(math.prod(self.input_shape), first),
                relu1=nn.ReLU(),
                fc2=nn.Linear(first, second),
                relu2=nn.ReLU(),
                fc3=nn.Linear(second, self.classes),
            )
        )
        layout = Layout(
            order=tuple(name for name, _ in module.named_children()),
            tensor_plan={"fc1": "column", "fc2": "row"},
            divisible={"fc1 features": first},
        )
        return BuiltModel(
            module=module, layout=layout, task="classification", spec={}, input_shape=self.input_shape
        )


@dataclass(frozen=True, kw_only=True)
class LeNet5(ModelSettings):
    """LeNet-5 in Caffe's form: two 5×5 convolutions (20, 50), pooling, 800 → 500 → 10; 431,080 parameters.

    Takes [B, 1, 28, 28] or [B, 784]; gives logits [B, classes]. As in Caffe there is no activation after the
    convolutions: published pruning results start from that network, max-pooling is nonlinearity enough for
    MNIST (about 0.8 % error), and accuracy and sparsity stay comparable. `convolution_relu: true` adds ReLU
    after both.
    source: Caffe, examples/mnist/lenet_train_test.prototxt; Han et al. 2015, arXiv:1506.02626.
    """

    facts: ClassVar = {"input_shape": "input_shape", "classes": "classes"}

    input_shape: tuple[Size, Size, Size] = (1, 28, 28)
    """One image [C, H, W], at least 16 × 16."""
    classes: Size = 10
    filters: tuple[Size, Size] = (20, 50)
    features: Size = 500
    convolution_relu: bool = False

    def __post_init__(self) -> None:
        if min(self.input_shape[1:]) < 16:
            raise ConfigError(
                f"model lenet_5: input_shape={list(self.input_shape)} is too small for two 5×5 convolutions "
                "with pooling; want at least 16 × 16, or use the model conv_bn or lenet_300_100"
            )

    def build(self) -> BuiltModel:
        channels, height, width = self.input_shape
        rest = [((size - 4) // 2 - 4) // 2 for size in (height, width)]  # 28 → 24 → 12 → 8 → 4
        module = nn.Sequential(
            OrderedDict(
                image=AsImage(self.input_shape),
                conv1=nn.Conv2d(channels, self.filters[0], 5),
                relu1=nn.ReLU() if self.convolution_relu else nn.Identity(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(self.filters[0], self.filters[1], 5),
                relu2=nn.ReLU() if self.convolution_relu else nn.Identity(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),  # [B, filters * rest]
                fc1=nn.Linear(self.filters[1] * math.prod(rest), self.features),
                relu3=nn.ReLU(),
                fc2=nn.Linear(self.features, self.classes),
            )
        )
        layout = Layout(
            order=tuple(name for name, _ in module.named_children()),
            tensor_plan={"fc1": "column", "fc2": "row"},
            divisible={"fc1 features": self.features},
        )
        return BuiltModel(
            module=module, layout=layout, task="classification", spec={}, input_shape=self.input_shape
        )


MODELS = {"lenet_300_100": LeNet300100, "lenet_5": LeNet5}
