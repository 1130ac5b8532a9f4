"""Forgepress: distributed training with built-in compression.

The public names load on first use, so that ``import forgepress`` costs nothing and the command line starts fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Loader": ".dataloading",
    "load_source": ".dataloading",
    "Technique": ".compression",
    "Run": ".compression",
    "Weight": ".compression",
    "exact_quantile": ".compression",
    "Mesh": ".parallel",
    "RunConfig": ".trainer.config",
    "Trainer": ".trainer.loop",
    "load": ".trainer.artifact",
    "ForgepressError": ".errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    # A folder imported under its own name by a test collector has no parent package; fall back to the installed one.
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
