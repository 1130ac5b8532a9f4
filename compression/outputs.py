"""The logits among what a model returns, in whatever form a library wraps them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import ConfigError


def logits_of(outputs: Any) -> Tensor:
    """The logits among a model's outputs: the tensor itself, `.logits`, or the first of a tuple.

    raises: ConfigError where there are none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = getattr(outputs, "logits", outputs)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"model: it returned {type(outputs).__name__}; want a tensor or something with .logits"
        )
    return found
