"""Activation checkpointing: blocks keep their input only and run again when the backward needs what is inside."""

from collections import Counter
from contextlib import nullcontext
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .layout import Layout


def blocks_of(model: nn.Module, layout: Layout) -> list[str]:
    """The repeated blocks of `model`, in its order: of the modules that the layout names those of the commonest class.

    Without any names in the layout, or where no class of them comes twice: all that have parameters.
    """
    named = set(layout.cuts)
    members = [
        name
        for name, module in model.named_modules()
        if name
        and (name in named or any(fnmatchcase(name, glob) for glob in layout.units))
        and any(True for _ in module.parameters())
    ]
    kinds = Counter(type(model.get_submodule(name)).__name__ for name in members)
    if not kinds or (most := kinds.most_common(1)[0])[1] < 2:
        return members
    return [name for name in members if type(model.get_submodule(name)).__name__ == most[0]]


def recomputed(model: nn.Module, layout: Layout, every: int) -> list[str]:
    """Every `every`-th block, counted over the whole model: the same ones on every mesh. 0: none."""
    return blocks_of(model, layout)[every - 1 :: every] if every else []


def recompute(part: nn.Module, names: list[str]) -> None:
    """Let these modules of `part` run again in the backward instead of keeping activations, in place.

    Names, parameters and hooks stay; dropout draws the same numbers again, averages of batch normalisation move
    once. Modules that live on another stage are passed over.   cost: one more forward of each of them a step.
    """
    present = dict(part.named_modules())
    for name in names:
        module = present.get(name)
        if module is not None and any(True for _ in module.parameters()):
            _wrap(module)


def _wrap(module: nn.Module) -> None:
    plain = module.forward

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _AveragesStay(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not module.training:
            return plain(*args, **kwargs)
        return checkpoint(plain, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    module.forward = forward


class _AveragesStay:
    """The second run of the same rows is no news for running averages: it moves copies.

    Entered once for each run: where activation and weight gradients are computed apart, there are two.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        self._kept: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self._kept = [dict(norm._buffers) for norm in self._norms]
        for norm in self._norms:
            copies = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
            norm._buffers.update(copies)

    def __exit__(self, *_: object) -> None:
        for norm, buffers in zip(self._norms, self._kept, strict=True):
            norm._buffers.update(buffers)
