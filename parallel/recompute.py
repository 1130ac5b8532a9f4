"""Activation checkpointing: blocks keep their input only and run again when the backward needs what is inside."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .layout import Layout


def blocks_of(model: nn.Module, layout: Layout) -> list[str]:
    """The repeated blocks of `model`, in its order: of the modules that the layout names those of one class.

    It is the class that comes twice or more and has most parameters. Without any names in the layout, or where no class
    of them comes twice: all that have parameters.
    """
    named = set(layout.cuts)
    members = [
        name
        for name, module in model.named_modules()
        if name
        and (name in named or any(fnmatchcase(name, glob) for glob in layout.units))
        and any(True for _ in module.parameters())
    ]
    kinds: dict[str, list[str]] = {}
    for name in members:
        kinds.setdefault(type(model.get_submodule(name)).__name__, []).append(name)
    repeated = [names for names in kinds.values() if len(names) > 1]
    if not repeated:
        return members
    return max(
        repeated, key=lambda names: sum(p.numel() for n in names for p in model.get_submodule(n).parameters())
    )


def recomputed(model: nn.Module, layout: Layout, every: int) -> list[str]:
    """Every `every`-th block, counted over the whole model: the same ones on every mesh. 0: none."""
    return blocks_of(model, layout)[every - 1 :: every] if every else []


def recompute(part: nn.Module, names: list[str], keep: Sequence[str] = ()) -> None:
    """Let these modules of `part` run again in the backward instead of keeping activations, in place.

    keep: of `KEPT`, operators whose results are kept and which do not run again.
    Names, parameters and hooks stay; dropout draws the same numbers again, averages of batch normalisation move
    once. Modules that live on another stage are passed over.   cost: one more forward of each of them a step.
    """
    present = dict(part.named_modules())
    for name in names:
        module = present.get(name)
        if module is not None and any(True for _ in module.parameters()):
            _wrap(module, kept_operators(keep))


def kept_operators(keep: Sequence[str]) -> frozenset[Any]:
    """torch's operators behind the words of `KEPT`, as dispatch modes see them."""
    found = (getattr(torch.ops.aten, name, None) for word in keep for name in KEPT[word])
    return frozenset(operator.default for operator in found if operator is not None)


KEPT = {
    "matmul": ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "linear"),
    "convolution": ("convolution",),
    "attention": (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    ),
}
"""Word of the config → operators that are worth keeping: they take longest for what they leave."""

_Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def _wrap(module: nn.Module, operators: frozenset[Any]) -> None:
    plain = module.forward
    options: dict[str, Any] = {}
    if operators or any(isinstance(m, _BatchNorm) for m in module.modules()):
        options["context_fn"] = _contexts(module, operators)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not module.training:
            return plain(*args, **kwargs)
        return checkpoint(plain, *args, use_reentrant=False, **options, **kwargs)

    module.forward = forward


def _contexts(module: nn.Module, operators: frozenset[Any]) -> _Contexts:
    """What the first and the second run of a block stand in."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def policy(ctx: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = operator in operators
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    averages = any(isinstance(m, _BatchNorm) for m in module.modules())

    def contexts() -> tuple[Any, Any]:
        first, again = nullcontext(), nullcontext()
        if operators:
            first, again = create_selective_checkpoint_contexts(policy)
        return first, _AveragesStay(module, again) if averages else again

    return contexts


class _AveragesStay:
    """The second run of the same rows is no news for running averages: it moves copies.

    Entered once for each run: where activation and weight gradients are computed apart, there are two.
    """

    def __init__(self, module: nn.Module, around: AbstractContextManager[Any]) -> None:
        """around: another context in which the second run is to stand."""
        self._around = around
        self._norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        self._kept: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self._around.__enter__()
        self._kept = [dict(norm._buffers) for norm in self._norms]
        for norm in self._norms:
            copies = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
            norm._buffers.update(copies)

    def __exit__(self, *error: Any) -> None:
        self._around.__exit__(*error)
        for norm, buffers in zip(self._norms, self._kept, strict=True):
            norm._buffers.update(buffers)
