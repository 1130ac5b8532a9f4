"""How a quantity grows over a phase: one-shot, linear, cubic, cosine."""

from __future__ import annotations

import math
from typing import Literal

Ramp = Literal["one_shot", "linear", "cubic", "cosine"]


def ramped(step: int, *, begin: int, end: int, target: float, ramp: Ramp) -> float:
    """Value at optimizer step ``step`` of a ramp from 0 at ``begin`` to ``target`` at ``end``.

    ``cubic`` rises fast and then ever more slowly, so that most is removed while there is most to spare; ``cosine``
    begins and ends slowly (half a wave).
    source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1 (with initial sparsity 0).
    """
    if step < begin:
        return 0.0
    if ramp == "one_shot" or step >= end:
        return target
    progress = (step - begin) / (end - begin)
    if ramp == "linear":
        return target * progress
    if ramp == "cosine":
        return target * (1.0 - math.cos(math.pi * progress)) / 2.0
    return target * (1.0 - (1.0 - progress) ** 3)
