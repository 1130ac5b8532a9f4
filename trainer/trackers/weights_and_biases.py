"""Weights & Biases, offline unless the config says otherwise; `wandb sync` sends an offline run later."""

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..jsonable import plain
from .scalars import scalars

_SECRET = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)
_OWN_WORDS = {"tokens", "tokenizer", "primary_key"}


class WeightsAndBiases:
    """One W&B run per run folder: its id lies in <run folder>/wandb/run-id, so that a resumed run is the same one.

    settings: `tracking.wandb` of the config (attributes or keys: project, entity, mode, group, …).
    config:   the resolved config, shown with the run; values under names such as `token` are left out.
    raises:   ConfigError where wandb is missing or cannot start, before the first step.
    """

    def __init__(
        self,
        settings: Any,
        folder: Path,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its crash reports go out even when offline
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "tracking.wandb needs the package wandb, which is not installed; "
                "run pip install wandb or set tracking.wandb: null"
            ) from error
        given = {key: value for key, value in plain(_as_dict(settings)).items() if value is not None}
        mode = given.pop("mode", "offline")
        self.id = run_id(folder, fresh=resume_step is None)
        try:
            self._run = wandb.init(
                dir=str(folder),
                id=self.id,
                name=name,
                mode=mode,
                resume="allow"
                if mode == "online"
                else None,  # offline runs are joined by their id when synced
                config=without_secrets(plain(config or {})),
                settings=wandb.Settings(
                    silent=True,
                    console="off",  # the terminal's text stays here: it may hold paths and names
                    save_code=False,
                    disable_git=True,
                    disable_code=True,
                    disable_job_creation=True,
                    x_disable_meta=True,  # host name, user, command line, program path
                    x_disable_stats=True,
                    x_save_requirements=False,
                ),
                **given,
            )
        except Exception as error:  # wandb raises many kinds; each means the same here
            raise ConfigError(
                f"tracking.wandb: mode={mode!r} could not start ({type(error).__name__}: {error}); "
                "set tracking.wandb.mode: offline, or log in with `wandb login`"
            ) from error

    def log(self, values: Mapping[str, Any]) -> None:
        """Adds the numbers at `values["step"]`. Steps that an online run already has are ignored by wandb itself."""
        step, numbers = scalars(values)
        if numbers:
            self._run.log(numbers, step=step)

    def close(self) -> None:
        """Finishes the W&B run."""
        self._run.finish()


def run_id(folder: Path, *, fresh: bool) -> str:
    """The id kept in the run folder; a new one where there is none or the run starts afresh."""
    file = folder / "wandb" / "run-id"
    if file.exists() and not fresh:
        return file.read_text(encoding="utf-8").strip()
    file.parent.mkdir(parents=True, exist_ok=True)
    made = uuid.uuid4().hex[:12]
    file.write_text(made + "\n", encoding="utf-8")
    return made


def without_secrets(value: Any) -> Any:
    """`value` (plain JSON) with entries whose name speaks of a key, token, password or secret replaced by a note."""
    if isinstance(value, dict):
        return {
            key: "(left out)" if _secret(key) and isinstance(entry, str) else without_secrets(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(entry) for entry in value]
    return value


def _secret(name: str) -> bool:
    return name not in _OWN_WORDS and bool(_SECRET.search(name))


def _as_dict(settings: Any) -> Mapping[str, Any]:
    if isinstance(settings, Mapping):
        return settings
    if hasattr(settings, "model_dump"):
        return settings.model_dump()
    return vars(settings)
