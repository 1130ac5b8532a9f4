"""TensorBoard event files under <run folder>/tensorboard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .scalars import scalars


class TensorBoard:
    """Writes numbers as `kind/name`. After a resume TensorBoard itself hides the steps that are done again."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "tracking.tensorboard: true needs the package tensorboard, which is not installed; "
                'run pip install "forgepress[tensorboard]" or set tracking.tensorboard: false'
            ) from error
        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)  # type: ignore[no-untyped-call]

    def log(self, values: Mapping[str, Any]) -> None:
        """Adds one point per number in `values`; `values["step"]` places it."""
        step, numbers = scalars(values)
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Writes what is waiting and closes the files."""
        self._writer.close()
