"""What the context axis asks of the model, the data and the metrics, said before the first step."""

from __future__ import annotations

from ..errors import ConfigError
from ..parallel.context import refuse_whole_sequences
from .config import RunConfig
from .models import BuiltModel
from .preflight_rules import Found


def check_context(config: RunConfig, built: BuiltModel, found: Found) -> None:
    """Sequences that can be cut, into pieces of equal length; metrics and techniques that know of pieces."""
    degree = config.parallel.context
    if degree == 1:
        return
    layout = built.layout
    try:
        refuse_whole_sequences(built.module, layout.attention, layout.uncut, degree)
    except ConfigError as error:
        found.refused(("parallel", "context"), error)
        return
    if config.parallel.compile:
        message = f"given {degree} with compile, which is not proven together; leave one of them out"
        found.problem(("parallel", "context"), message)
    length = built.input_shape[0] if built.input_shape else 0
    if length % degree:
        found.problem(
            ("parallel", "context"),
            f"given {degree}, which does not divide the {length} tokens of a row; change their length or the degree",
        )
    for name in config.evaluate.metrics:
        if ":" in name:
            message = f"{name} would see pieces of rows; use metrics of the task, or context: 1"
            found.problem(("evaluate", "metrics"), message)
    for index, phase in enumerate(config.phases):
        for number, entry in enumerate(phase.techniques):
            if entry.settings.get("cache"):
                path = ("phases", index, "techniques", number)
                message = (
                    "a teacher's answers to pieces of rows are not kept; use cache: false, or context: 1"
                )
                found.problem(path, message)
