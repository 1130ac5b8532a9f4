"""Random numbers as a function of where the run stands, so that resume needs no saved generator."""

from __future__ import annotations

import random

import numpy as np
import torch

from ..parallel import Mesh


class StepSeeds:
    """Seeds every generator at the start of a step from (seed, step, data rank, piece of the sequence, stage).

    Ranks that work on the same tokens of the same stage (tensor axis) draw the same numbers, others different
    ones. A resumed run draws what the unbroken one would have drawn, from nothing but its step.
    """

    def __init__(self, seed: int, mesh: Mesh, *, numpy_too: bool = False) -> None:
        stage = mesh.coordinates["pipeline"]
        place = mesh.coordinates["context"]
        self._base = (seed * 1_000_003 + mesh.data_rank * 8191 + place * 524_287 + stage) & 0x7FFFFFFF
        self._all = numpy_too
        self._cuda = mesh.device.type == "cuda"

    def begin(self, step: int) -> None:
        """Set torch's generators for optimizer step ``step`` (and Python's and NumPy's where asked for)."""
        value = (self._base + step * 2_654_435_761) & 0xFFFFFFFF
        torch.default_generator.manual_seed(
            value
        )  # torch.manual_seed asks every kind of device: 10 µs a step
        if self._cuda:
            torch.cuda.manual_seed(value)
        if self._all:
            random.seed(value)
            np.random.seed(value)
