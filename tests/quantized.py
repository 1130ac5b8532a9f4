"""Models with quantized layers, made by hand: what export starts from, without a run."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from forgepress.compression.quantization.activations import ActivationQuantizer
from forgepress.compression.quantization.grid import grid_of, snap_, spread, weight_range
from forgepress.compression.quantization.modules import (
    Quantized,
    can_be_quantized,
    quantized,
    quantized_layers,
)
from torch import Tensor, nn


def quantize(
    model: nn.Module,
    rows: Tensor | Mapping[str, Tensor],
    *,
    bits: int = 8,
    group: int = 0,
    symmetric: bool = True,
    inputs: str | None = "static",
    inputs_symmetric: bool = False,
    only: Callable[[str, nn.Module], bool] = lambda name, layer: True,
) -> nn.Module:
    """Every layer that can be quantized, on the grid of its own range; static inputs on that of what ``rows`` bring."""
    for name, layer in list(model.named_modules()):
        if can_be_quantized(layer) and only(name, layer):
            quantizer = None
            if inputs is not None and not isinstance(layer, nn.Embedding):
                dims = layer.weight.dim() - 1  # an image, or a token
                quantizer = ActivationQuantizer(
                    symmetric=inputs_symmetric, dynamic=inputs == "dynamic", row_dims=dims
                )
            made = quantized(
                layer,
                weight_bits=bits,
                group_size=group,
                weight_symmetric=symmetric,
                input_quantizer=quantizer,
            )
            _write_grid(made, symmetric)
    if inputs is not None:
        _calibrate(model, rows)
    return model.eval()


def _write_grid(layer: Quantized, symmetric: bool) -> None:
    weight = layer.weight.detach()
    low, high = weight_range(weight, layer.group_size or "channel")
    scale, zero_point = grid_of(low, high, layer.weight_bits, symmetric)
    features = torch.arange(weight.shape[1])
    zero = None if symmetric else spread(zero_point, features, layer.group_size)
    snap_(weight, spread(scale, features, layer.group_size), zero, layer.weight_bits)
    layer.deliver(scale, None if symmetric else zero_point)


def _calibrate(model: nn.Module, rows: Tensor | Mapping[str, Tensor]) -> None:
    quantizers = [q for layer in quantized_layers(model).values() if (q := layer.input_quantizer) is not None]
    for quantizer in quantizers:
        quantizer.observing = not quantizer.dynamic
    with torch.no_grad():
        call(model.eval(), rows)
    for quantizer in quantizers:
        if quantizer.seen is not None:
            quantizer.set_range((-quantizer.seen[0]).clamp(max=0), quantizer.seen[1].clamp(min=0))
        quantizer.settle()


def call(model: nn.Module, rows: Any) -> Any:
    """The model on one tensor, or on keyword inputs."""
    return model(**rows) if isinstance(rows, Mapping) else model(rows)


class Pictures(nn.Module):
    """Convolutions as they come: strided, depthwise, beside a residual sum, before a pool; then linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False)
        self.beside = nn.Conv2d(8, 8, 1)
        self.hidden = nn.Linear(8 * 4 * 4, 20, bias=False)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (x + self.beside(self.depthwise(x).relu())).relu()
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.head(self.hidden(x).relu())


class Words(nn.Module):
    """A table, layers on [rows, length, width], and one on [rows, width]; keyword inputs, outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(31, 16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.table(input_ids)
        x = x + self.down(nn.functional.gelu(self.up(x)))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.head(pooled), "hidden": x}


def pictures(rows: int = 6) -> Tensor:
    """Inputs of `Pictures`."""
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def words(rows: int = 6, length: int = 9) -> dict[str, Tensor]:
    """Inputs of `Words`."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    return {"input_ids": torch.randint(0, 31, (rows, length), generator=generator), "attention_mask": mask}


def made(kind: type[nn.Module], **settings: Any) -> tuple[nn.Module, Any]:
    """A quantized `Pictures` or `Words` with inputs that it was calibrated on."""
    torch.manual_seed(0)
    rows = pictures() if kind is Pictures else words()
    return quantize(kind(), rows, **settings), rows
