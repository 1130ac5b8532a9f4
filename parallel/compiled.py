"""torch.compile, block by block: blocks of one kind share one compilation, and nothing is renamed."""

from typing import Any

from torch import nn

from .layout import Layout
from .recompute import blocks_of

_ROOM = 16  # compilations of one function beside one for each block: training, evaluation, ragged batches


def compiled(model: nn.Module, layout: Layout) -> list[str]:
    """The modules that are compiled each by itself: the blocks of `model`; [""], all of it, where none are known."""
    return blocks_of(model, layout) or [""]


def compile_blocks(part: nn.Module, names: list[str], *, backend: str = "inductor") -> None:
    """Let these modules of `part` run compiled, in place; modules on another stage are passed over.

    Only their forward is compiled: hooks on the blocks themselves (FSDP2 gathers by them) stay outside. Hooks on
    modules inside must be there before the first forward. Without room for one more compilation the run fails
    instead of going on uncompiled.
    cost: a minute or so in the first forward and backward, again in evaluation and for another batch size.
    """
    import torch
    import torch._dynamo.config as settings

    limit = max(settings.recompile_limit, len(names) + _ROOM)
    settings.recompile_limit, settings.fail_on_recompile_limit_hit = limit, True
    settings.optimize_ddp = False  # blocks are smaller than what torch would cut for DDP's buckets
    present = dict(part.named_modules())
    for name in names:
        module = present.get(name)
        if module is None or not any(True for _ in module.parameters()):
            continue
        for inner in module.modules():
            if hasattr(inner, "_across"):  # global batch normalisation talks to other ranks
                inner.forward = torch.compiler.disable(inner.forward)
        own: Any = module.forward
        module.forward = torch.compile(own, backend=backend)
