"""The learning rate over one phase: pure functions of the step, so that a resumed run needs no schedule state."""

import math
from collections.abc import Callable

from ..errors import ConfigError
from .config import ScheduleConfig


def factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at optimizer step `step` (0, 1, …) of a phase of `steps` steps.

    The first `warmup` steps lie on the line from 0 (one step before the phase) to 1 (at step `warmup`): no
    step is wasted on a rate of 0. From there the rate falls to `final`, which it would reach at step `steps`.
    raises: ConfigError for an unknown name.
    """
    if schedule.name not in CURVES:
        raise ConfigError(
            f"optimizer.schedule={schedule.name!r} is not known; want one of {', '.join(CURVES)}"
        )
    if step < schedule.warmup:
        return (step + 1) / (schedule.warmup + 1)
    begin = schedule.warmup
    if schedule.name == "wsd":
        begin = max(begin, round(steps * (1 - schedule.decay)))
    progress = (step - begin) / max(1, steps - begin)
    fallen = CURVES[schedule.name](min(1.0, max(0.0, progress)))
    return 1.0 - (1.0 - schedule.final) * fallen


def constant(progress: float) -> float:
    """Nothing of the fall, ever."""
    return 0.0


def linear(progress: float) -> float:
    """As much of the fall as of the way."""
    return progress


def cosine(progress: float) -> float:
    """Half a cosine wave: slow, fast, slow. source: Loshchilov and Hutter 2017, arXiv:1608.03983, no restarts."""
    return (1.0 - math.cos(math.pi * progress)) / 2.0


CURVES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": linear,  # warm-up, stable, decay: `factor` starts it late. source: Hu et al. 2024, arXiv:2404.06395
}
"""Share of the way from 0 to 1 → share of the fall from 1 to `final`."""
