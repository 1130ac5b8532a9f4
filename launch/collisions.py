"""A name that is taken: what differs from the run that has it, before a rank is started."""

from pathlib import Path
from typing import Any

from ..errors import ConfigError

_SHOWN = 4  # differences that the message lists


def refuse_running(run_folder: Path) -> None:
    """Refuses to start ranks while a run of this name goes on. raises: ConfigError naming who holds the folder."""
    from ..trainer.run_lock import RunLock

    lock = RunLock(run_folder)
    lock.acquire()
    lock.release()  # the first rank takes it for good


def refuse_collision(config: Any, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuses a config whose run folder holds a run with another one, unless the user says what is meant.

    The same config goes on where it stopped, on any mesh. resume: goes on with the changed config (what cannot be
    continued is refused later, by name). overwrite: starts over.
    raises: ConfigError naming the first keys that differ.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite were both given; want one: go on, or start over")
    folder = config.run_folder
    if overwrite or not (folder / "config.yaml").exists():
        if resume:
            raise ConfigError(f"--resume: {folder} holds no run; leave --resume out to begin one")
        return
    if resume:
        return
    from ..trainer.config_diff import deciding_differences
    from ..trainer.summary import read_config

    found = deciding_differences(read_config(folder), config)
    if found:
        shown = [f"  {each}" for each in found[:_SHOWN]]
        more = [f"  and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise ConfigError(
            "\n".join([f"{folder} holds a run of this name with another config:", *shown, *more])
            + "\ntake another name (name=…), go on with the changed config (--resume), or start over (--overwrite)"
        )
