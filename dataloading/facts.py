"""What a model must know of the data to fill sizes that its config leaves open."""

from typing import Any

import torch

from .source import ArraySource, Source


def facts(source: Source) -> dict[str, Any]:
    """The keys that are known of: input_shape, classes, vocabulary (its size), length (tokens in a row),
    packed (several documents in a row).

    classes is the largest target + 1, known where the data are in memory or their file says it.
    """
    found: dict[str, Any] = {}
    inputs, targets = source.columns.get("inputs"), source.columns.get("targets")
    row_length = getattr(source, "row_length", None)
    if inputs is not None:
        found["input_shape"] = inputs.shape if row_length is None else (row_length,)
    if vocabulary := getattr(source, "vocabulary", None):
        tokens = source.columns.get("input_ids", inputs)
        found["vocabulary"] = len(vocabulary)
        found["length"] = tokens.shape[0] if tokens is not None and tokens.shape else None
    if row_length is not None:
        found["length"] = row_length
    if getattr(source, "packed", False):
        found["packed"] = True
    if targets is not None and targets.shape == () and targets.dtype == torch.int64:
        found["classes"] = getattr(source, "classes", None)
        if found["classes"] is None and isinstance(source, ArraySource):
            found["classes"] = int(source.tensors["targets"].max()) + 1
    return {key: value for key, value in found.items() if value is not None}
