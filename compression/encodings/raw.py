"""The tensor as it is: the smallest where zeros are few, and what other readers of safetensors understand."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .encoded import Encoded


def encode(tensor: Tensor) -> Encoded:
    """`tensor` as one stream `values` in its own shape."""
    values = tensor.detach().cpu().contiguous()
    return Encoded(encoding="raw", shape=tuple(tensor.shape), dtype=tensor.dtype, streams={"values": values})


def decode(
    streams: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype, settings: Mapping[str, int]
) -> Tensor:
    """The stream itself. ValueError where its shape or dtype is another one."""
    values = streams.get("values")
    if values is None or tuple(values.shape) != tuple(shape) or values.dtype != dtype:
        found = "none" if values is None else f"{values.dtype} {list(values.shape)}"
        raise ValueError(f"the stream 'values' is {found}; want {dtype} {list(shape)}")
    return values
