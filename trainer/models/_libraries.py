"""Importing the libraries that models of others come from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

import torch

from ...errors import ConfigError

_operators: list[torch.library.Library] = []  # what is declared lives as long as these do


@contextmanager
def importing(library: str) -> Iterator[None]:
    """A failed import becomes a ConfigError that says what to install."""
    _bear_torchvision()
    try:
        yield
    except (ImportError, RuntimeError) as error:
        causes = [error, *_causes(error)]
        if not isinstance(error, ImportError) and "torchvision::" not in str(causes[-1]):
            raise
        hint = (
            "install a torchvision built for this torch (same release, same CPU or CUDA build)"
            if any("torchvision" in str(cause) for cause in causes)
            else "install it with pip install 'forgepress[models]'"
        )
        raise ConfigError(f"model: {library} cannot be imported ({causes[-1]}); {hint}") from error


def _bear_torchvision() -> None:
    """Import torchvision also where its compiled part was built for another torch, or for CUDA beside a CPU torch.

    transformers and timm import it for all their models, and its import fails at a missing operator. Few models
    need one: the operators are declared, so that the import succeeds and only a call of them fails.
    """
    if "torchvision" in sys.modules or find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        declared = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _operators.append(declared)


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__) is not None:
        yield cause
        error = cause
