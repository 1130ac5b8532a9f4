"""Where the numbers of a run go: metrics.jsonl always, TensorBoard and Weights & Biases where the config says so."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from .jsonl import JsonLines, read_lines

__all__ = ["JsonLines", "Tracker", "Trackers", "open_trackers", "read_lines"]

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a tracker can do: take one dict of values with a step in it, and close."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Takes the numbers of one line; `values["step"]` places them."""
        ...

    def close(self) -> None:
        """Writes what is waiting and lets go of files and processes."""
        ...


class Trackers:
    """All trackers of a run as one. On other ranks than 0 it holds none and every call returns at once."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def log(self, values: Mapping[str, Any]) -> None:
        """Gives `values` (with "step", "kind" and "phase") to every tracker.

        A dashboard that fails is reported once and left out from then on; metrics.jsonl may not fail, because
        everything else can be rebuilt from it. raises: CheckpointError where metrics.jsonl cannot be written.
        """
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(values)
            except Exception as error:
                if name == "jsonl":
                    raise
                _log.warning("tracker %s failed and is off from here on: %s", name, error)
                del self._trackers[name]

    @property
    def state(self) -> dict[str, Any]:
        """What identifies the run elsewhere, for summary and checkpoint: {"wandb": {"id": …}} or {}."""
        ids = {name: getattr(tracker, "id", None) for name, tracker in self._trackers.items()}
        return {name: {"id": known} for name, known in ids.items() if known is not None}

    def close(self) -> None:
        """Closes all; an error of one does not keep the others open. Calling it twice is harmless."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            try:
                tracker.close()
            except Exception as error:
                _log.warning("tracker %s did not close: %s", name, error)


def open_trackers(
    tracking: Any,
    run_folder: str | Path,
    resume_step: int | None = None,
    *,
    rank: int = 0,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Trackers:
    """The trackers that `config.tracking` asks for, writing under `run_folder`.

    resume_step: the step that the run goes on from; None for a new run.
    rank:        other ranks than 0 get no tracker.
    name, config: shown by Weights & Biases.
    raises:      ConfigError where a tracker's package is missing or cannot start.
    """
    if rank != 0:
        return Trackers({})
    folder = Path(run_folder).absolute()
    trackers: dict[str, Tracker] = {}
    if tracking.tensorboard:
        from .tensorboard import TensorBoard

        trackers["tensorboard"] = TensorBoard(folder / "tensorboard", resume_step)
    if tracking.wandb is not None:
        from .weights_and_biases import WeightsAndBiases

        trackers["wandb"] = WeightsAndBiases(
            tracking.wandb, folder, name=name, config=config, resume_step=resume_step
        )
    # last, so that a tracker that cannot start leaves the metrics of an earlier run as they are
    return Trackers({"jsonl": JsonLines(folder / "metrics.jsonl", resume_step), **trackers})
