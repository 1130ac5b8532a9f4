"""The run's folder: claimed before the first step, with the resolved config in it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..errors import ConfigError
from ..parallel import Mesh
from .checkpoint_files import sweep
from .config import RunConfig
from .history import recorded
from .run_lock import RunLock
from .secrets import refuse_secrets


@contextmanager
def claimed(config: RunConfig, mesh: Mesh, *, fresh: bool) -> Iterator[None]:
    """Make the run folder, try that it can be written and keep other runs out until the block ends.

    fresh:  deletes what an earlier run of the name left.
    raises: ConfigError on every rank where the folder cannot be written, or a run of this name is going on.
    """
    lock = RunLock(config.run_folder)
    try:
        _on_first_rank(lambda: _prepare(config.run_folder, lock, fresh), config, mesh)
        yield
    finally:
        lock.release()


def keep_config(config: RunConfig, mesh: Mesh) -> None:
    """Write ``config.yaml``. Only once the run is known to be this config's: another one must not lose its own.

    raises: ConfigError on every rank where the folder cannot be written, or the config holds a secret.
    """
    _on_first_rank(lambda: _write(config), config, mesh)


def _on_first_rank(work: Callable[[], None], config: RunConfig, mesh: Mesh) -> None:
    trouble: list[str | None] = [None]
    if mesh.rank == 0:
        try:
            work()
        except OSError as error:
            trouble = [
                f"checkpoint.folder: the run folder {config.run_folder} cannot be written "
                f"({error.strerror or error}); name a folder that can, or free space there"
            ]
        except ConfigError as error:
            trouble = [str(error)]
    if mesh.world > 1:
        dist.broadcast_object_list(trouble, src=0)
    if trouble[0] is not None:
        raise ConfigError(trouble[0])


def _prepare(folder: Path, lock: RunLock, fresh: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    if fresh:
        for name in ("checkpoints", "artifacts", "teachers", "teacher-cache", "tensorboard", "wandb"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("metrics.jsonl", "summary.json", "plan.json", "report.html", "history.jsonl"):
            (folder / name).unlink(missing_ok=True)
    sweep(folder / "checkpoints")
    probe = folder / ".writable"
    probe.write_text("")
    probe.unlink()


def _write(config: RunConfig) -> None:
    refuse_secrets(config.model_dump(mode="json"))
    partial = config.run_folder / ".config.yaml.partial"
    partial.write_text(config.to_yaml())
    os.replace(partial, config.run_folder / "config.yaml")  # a full disk leaves the file that was there


@contextmanager
def session(config: RunConfig, mesh: Mesh, total_steps: int, position: Callable[[], int]) -> Iterator[None]:
    """This start of the run and its end in history.jsonl; rank 0 writes. Collective: hosts are gathered."""
    hosts: list[Any] = [socket.gethostname()]
    if mesh.world > 1:
        hosts = [None] * mesh.world
        dist.all_gather_object(hosts, socket.gethostname())
    if mesh.rank:
        yield
        return
    about = {
        "name": config.name,
        "seed": config.seed,
        "mesh": mesh.degrees,
        "hosts": list(dict.fromkeys(hosts)),
        "step": position(),
        "total_steps": total_steps,
    }
    with recorded(config.run_folder, about, position, alone=mesh.world == 1):
        yield
