"""Batches on a GPU: copied on a stream of their own while the step before goes on."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from .making import Made

_AHEAD = 2  # batches that lie on the device before their step


class Placer:
    """Keeps the next batches on a CUDA device. Their page-locked memory is held until the copy is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._placed: deque[tuple[Made, torch.cuda.Event]] = deque()
        self._copied: deque[tuple[Made, torch.cuda.Event]] = (
            deque()
        )  # page-locked batches and when they are free

    def next(self, take: Callable[[], Made]) -> Made:
        """The next batch, usable in the current stream; `take` gives those after it, in page-locked memory."""
        while len(self._placed) < _AHEAD:
            self._place(take())
        made, copied = self._placed.popleft()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        for tensor in made.batch.columns.values():
            tensor.record_stream(
                current
            )  # its memory may be taken again only after what this stream does with it
        if made.batch.valid is not None:
            made.batch.valid.record_stream(current)
        return made

    def clear(self) -> None:
        """Forget what was placed ahead."""
        self._stream.synchronize()
        self._placed.clear()
        self._copied.clear()

    def _place(self, made: Made) -> None:
        while self._copied and self._copied[0][1].query():
            self._copied.popleft()
        batch = made.batch
        with torch.cuda.stream(self._stream):
            columns = {
                name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.columns.items()
            }
            valid = None if batch.valid is None else batch.valid.to(self._device, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(self._stream)
        self._copied.append((made, copied))
        placed = replace(batch, columns=columns, valid=valid)
        self._placed.append((Made(placed, made.after), copied))
