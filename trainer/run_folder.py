"""The run's folder: claimed before the first step, with the resolved config in it."""

from __future__ import annotations

import shutil

import torch.distributed as dist

from ..errors import ConfigError
from ..parallel import Mesh
from .config import RunConfig


def claim(config: RunConfig, mesh: Mesh, *, fresh: bool) -> None:
    """Make the run folder and write ``config.yaml``; ``fresh`` deletes what an earlier run of the name left.

    raises: ConfigError on every rank where the folder cannot be written.
    """
    trouble: list[str | None] = [None]
    if mesh.rank == 0:
        trouble = [_prepare(config, fresh)]
    if mesh.world > 1:
        dist.broadcast_object_list(trouble, src=0)
    if trouble[0] is not None:
        raise ConfigError(trouble[0])


def _prepare(config: RunConfig, fresh: bool) -> str | None:
    folder = config.run_folder
    try:
        if fresh:
            for name in ("checkpoints", "artifacts", "tensorboard", "wandb"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in ("metrics.jsonl", "summary.json", "plan.json", "report.html"):
                (folder / name).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
        (folder / "config.yaml").write_text(config.to_yaml())
    except OSError as error:
        return (
            f"checkpoint.folder: the run folder {folder} cannot be written ({error.strerror or error}); "
            "name a folder that can, or free space there"
        )
    return None
