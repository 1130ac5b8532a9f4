"""Asked to stop: signals set a flag, and all ranks agree at a step boundary to save and end there."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import torch

from ..parallel import Mesh

_SECONDS_BETWEEN_VOTES = 0.25


class Interrupts:
    """Turns SIGTERM and SIGUSR1 into a stop that every rank takes at the same step.

    A vote costs an all-reduce, so that steps of a millisecond cannot afford one each: ranks vote about four
    times a second, at steps that they all compute alike from the votes themselves.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._asked = False
        self._next_vote = 1
        self._last = (0, time.monotonic())
        self._previous: dict[int, object] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True  # nothing else: saving inside a handler would tear a step (or a collective) apart

    def agreed(self, step: int) -> bool:
        """Whether all ranks stop after ``step``; called by all of them at every step boundary."""
        if self._mesh.world == 1:
            return self._asked
        if step < self._next_vote:
            return False
        last_step, last_time = self._last
        now = time.monotonic()
        seconds = (now - last_time) / max(step - last_step, 1)
        vote = torch.tensor([float(self._asked), seconds], dtype=torch.float64, device=self._mesh.device)
        asked, slowest = self._mesh.reduce(vote, "max").tolist()
        self._last = (step, now)
        self._next_vote = step + max(1, min(1000, int(_SECONDS_BETWEEN_VOTES / max(slowest, 1e-6))))
        return asked > 0

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
