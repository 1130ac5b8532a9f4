"""Which evaluation is the best so far, so that its checkpoint is spared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConfigError
from .config import BestConfig


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation of the present phase."""

    phase: int
    metric: str
    value: float
    step: int

    def as_json(self) -> dict[str, Any]:
        """The fields, for the checkpoint."""
        return asdict(self)


def better(
    now: Best | None, metrics: Mapping[str, float], wanted: BestConfig | None, *, phase: int, step: int
) -> Best | None:
    """The new best if these metrics are it, else None.

    wanted: which metric and whether more is better; None: the least loss. A later phase starts anew: its model is
    smaller, and its best counts however good the dense one was.
    raises: ConfigError where the metric is not among those evaluated.
    """
    name, mode = (wanted.metric, wanted.mode) if wanted else ("loss", "min")
    if name not in metrics:
        raise ConfigError(
            f"evaluate.best.metric={name!r} is not among the metrics {', '.join(metrics)}; name one of them"
        )
    value = metrics[name]
    if math.isnan(value):
        return None  # and were it kept, nothing could ever be better
    found = Best(phase=phase, metric=name, value=value, step=step)
    if now is None or now.phase != phase:
        return found
    return found if (value > now.value if mode == "max" else value < now.value) else None
