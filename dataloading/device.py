"""Batches on the device of the step."""

from dataclasses import replace

import torch
from torch import Tensor

from .batch import Batch


def staged(columns: dict[str, Tensor], device: torch.device | None) -> dict[str, Tensor]:
    """Page-locked copies, from which a GPU copies while the step goes on; the columns themselves for the CPU."""
    if device is None or device.type != "cuda":
        return columns
    return {name: tensor.pin_memory() for name, tensor in columns.items()}


def placed(batch: Batch, device: torch.device | None) -> Batch:
    """The batch on `device`, copied in the current stream without waiting; itself for the CPU.

    The page-locked memory may be let go at once: torch's allocator keeps it until the copy is done.
    """
    if device is None or device.type == "cpu":
        return batch
    columns = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.columns.items()}
    valid = None if batch.valid is None else batch.valid.to(device, non_blocking=True)
    return replace(batch, columns=columns, valid=valid)
