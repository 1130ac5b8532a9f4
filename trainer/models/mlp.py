"""A multi-layer perceptron with BatchNorm before every ReLU: the fully connected net that network slimming slims."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from ...parallel.layout import Layout
from ._base import BuiltModel, ModelSettings, Size


@dataclass(frozen=True, kw_only=True)
class MLP(ModelSettings):
    """Linear, BatchNorm and ReLU for every hidden layer, then one linear layer; 547,410 parameters for 784 → 10.

    Takes [B, …]; gives logits [B, classes]. BatchNorm stands behind every hidden layer, so no two linear layers
    can share one cut: the tensor axis cannot divide this model.
    source: the network of table 3 in Liu et al. 2017, arXiv:1708.06519, with the normalisation that slimming needs.
    """

    facts: ClassVar = {"input_shape": "input_shape", "classes": "classes"}

    input_shape: tuple[Size, ...] = (784,)
    """One row; flattened inside."""
    classes: Size = 10
    hidden: tuple[Size, ...] = (500, 300)
    scale: Annotated[float, Field(gt=0.0)] = 1.0
    """Where BatchNorm's scales begin; the authors of network slimming begin at 0.5."""

    def build(self) -> BuiltModel:
        width = math.prod(self.input_shape)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for number, neurons in enumerate(self.hidden, start=1):
            layers[f"fc{number}"] = nn.Linear(width, neurons)
            layers[f"bn{number}"] = norm = nn.BatchNorm1d(neurons)
            nn.init.constant_(norm.weight, self.scale)
            layers[f"relu{number}"] = nn.ReLU()
            width = neurons
        layers[f"fc{len(self.hidden) + 1}"] = nn.Linear(width, self.classes)
        return BuiltModel(
            module=nn.Sequential(layers),
            layout=Layout(order=tuple(layers)),
            task="classification",
            spec={},
            input_shape=self.input_shape,
        )


MODELS = {"mlp": MLP}
