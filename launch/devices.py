"""How many ranks this machine is meant for, without loading anything heavy where there is no GPU."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .environment import threads_per_rank

_DRIVERS = (
    "/proc/driver/nvidia",
    "/dev/nvidiactl",
    "/dev/kfd",
)  # what a machine with a GPU that torch knows has


def ranks_here(config: Any, given: str | None) -> int:
    """The local ranks of `forgepress train`: those of --ranks, or as many as the mesh says.

    given: a number; "auto": one for each GPU, without GPUs one for each core; None: what the config's mesh needs,
    and auto where a degree of it is auto. With auto it is the largest number that the mesh can have.
    raises: ConfigError for another word, and where the mesh cannot have so many.
    """
    if given is None and config.parallel.derived is None:
        return config.parallel.ranks
    if given is None or given == "auto":
        return _most(config.parallel, gpus() or threads_per_rank(1))
    if not given.isdigit() or int(given) < 1:
        raise ConfigError(f"--ranks {given}: want a number from 1, or auto")
    return config.on(int(given)).parallel.ranks if config.parallel.derived else int(given)


def _most(parallel: Any, room: int) -> int:
    if parallel.derived is None:
        return parallel.ranks
    return max(1, room // parallel.ranks) * parallel.ranks


def gpus() -> int:
    """GPUs that this process may use. cost: an interpreter that imports torch, where there is a driver for any.

    Another process counts: one in which CUDA's driver has been asked may not be copied any more.
    """
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return 0
    count = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(count, capture_output=True, text=True, timeout=300)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else 0
