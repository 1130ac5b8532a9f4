"""Where a run comes from: command, commit, package versions, host and device. What somebody needs to do it again."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .secrets import hide_in_words

PACKAGES = (
    *("forgepress", "torch", "numpy", "accelerate", "deepspeed", "datasets", "transformers", "timm"),
    *("safetensors", "pydantic", "omegaconf", "onnx", "onnxruntime", "scikit-learn", "wandb", "tensorboard"),
)


def provenance() -> dict[str, Any]:
    """Everything about this process that is known without the run: JSON, no secrets. cost: two git calls."""
    return {
        "command": command_line(),
        "folder": str(Path.cwd()),
        "git": git_state(Path.cwd()),
        "python": platform.python_version(),
        "packages": package_versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "host": socket.gethostname(),
        "device": device_name(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def command_line(words: list[str] | None = None) -> str:
    """How this process was started, as one could type it, without secrets."""
    words = list(sys.argv if words is None else words)
    first = Path(words[0]) if words else Path("python")
    if first.name == "forgepress" or first.parts[-2:] in (("launch", "__main__.py"), ("launch", "cli.py")):
        words[0] = "forgepress"
    return shlex.join(hide_in_words(words))


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that `folder` is at, and whether tracked files were changed since; None outside of a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed) if changed is not None else None}


def package_versions() -> dict[str, str]:
    """Versions of what a run may stand on, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """The first GPU's name, else the processor's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "cpu"


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
