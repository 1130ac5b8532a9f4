"""The run's folder: claimed before the first step, with the resolved config in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from ..errors import ConfigError
from ..parallel import Mesh
from .checkpoint_files import sweep
from .config import RunConfig


def claim(config: RunConfig, mesh: Mesh, *, fresh: bool) -> None:
    """Make the run folder and try that it can be written; ``fresh`` deletes what an earlier run of the name left.

    raises: ConfigError on every rank where the folder cannot be written.
    """
    _on_first_rank(lambda: _prepare(config.run_folder, fresh), config, mesh)


def keep_config(config: RunConfig, mesh: Mesh) -> None:
    """Write ``config.yaml``. Only once the run is known to be this config's: another one must not lose its own.

    raises: ConfigError on every rank where the folder cannot be written.
    """
    _on_first_rank(lambda: _write(config), config, mesh)


def _on_first_rank(work: Callable[[], None], config: RunConfig, mesh: Mesh) -> None:
    trouble: list[str | None] = [None]
    if mesh.rank == 0:
        try:
            work()
        except OSError as error:
            trouble = [error.strerror or str(error)]
    if mesh.world > 1:
        dist.broadcast_object_list(trouble, src=0)
    if trouble[0] is not None:
        raise ConfigError(
            f"checkpoint.folder: the run folder {config.run_folder} cannot be written ({trouble[0]}); "
            "name a folder that can, or free space there"
        )


def _prepare(folder: Path, fresh: bool) -> None:
    if fresh:
        for name in ("checkpoints", "artifacts", "teachers", "teacher-cache", "tensorboard", "wandb"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("metrics.jsonl", "summary.json", "plan.json", "report.html"):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder / "checkpoints")
    probe = folder / ".writable"
    probe.write_text("")
    probe.unlink()


def _write(config: RunConfig) -> None:
    partial = config.run_folder / ".config.yaml.partial"
    partial.write_text(config.to_yaml())
    os.replace(partial, config.run_folder / "config.yaml")  # a full disk leaves the file that was there
