"""Sequence parallelism: between the layers that the tensor axis divides, each of its ranks has a part of the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..errors import ConfigError
from .layout import COLUMN_STYLES, Layout

# Shapes: hidden states [rows, T, width] whole, [rows, T / degree, width] split.


def inside(name: str, blocks: Sequence[str]) -> bool:
    """Whether a module or parameter of that name is in one of these blocks."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def entries(plan: Mapping[str, str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """The modules before which a block's tokens are made whole → the column layers that this is for.

    Layers with the same parent take them together: the parent, attention say, looks at the whole sequence itself. So
    does the parent of a qkv layer.
    """
    by_parent: dict[str, list[str]] = {}
    for name, style in plan.items():
        if style in COLUMN_STYLES and inside(name, blocks):
            by_parent.setdefault(name.rpartition(".")[0], []).append(name)
    return {
        parent if len(names) > 1 or plan[names[0]] == "qkv" else names[0]: names
        for parent, names in by_parent.items()
    }


def split_tokens(part: nn.Module, plan: Mapping[str, str], blocks: Sequence[str], mesh: DeviceMesh) -> None:
    """Let the blocks of `part` compute on parts of the tokens, in place; their row layers must give such parts.

    blocks: those that run here, in order.   mesh: the tensor axis.
    cost:   an all-gather before and a reduce-scatter behind each pair of column and row, together what one all-reduce
        costs; activations between them take 1 / degree of the memory.
    """
    from torch.distributed.tensor import Replicate, Shard

    for name in entries(plan, blocks):
        _before(part.get_submodule(name), mesh, (Shard(1),), (Replicate(),), local=False)
    _before(part.get_submodule(blocks[0]), mesh, (Replicate(),), (Shard(1),), local=True)

    def gather(module: nn.Module, args: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        x = _moved(x, mesh, (Shard(1),), (Replicate(),)).to_local()
        return x if isinstance(output, Tensor) else type(output)((x, *output[1:]))

    part.get_submodule(blocks[-1]).register_forward_hook(gather)


def _before(module: nn.Module, mesh: DeviceMesh, held: Any, wanted: Any, *, local: bool) -> None:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        name = None if args else next((key for key in ("hidden_states", "x", "input") if key in kwargs), None)
        x = args[0] if args else kwargs[name]
        if local and x.shape[1] % mesh.size():
            raise ConfigError(
                f"parallel.sequence_parallel: tensor={mesh.size()} does not divide the {x.shape[1]} tokens of a row; "
                "change the length of rows, or use sequence_parallel: false"
            )
        moved = _moved(x, mesh, held, wanted)
        moved = moved.to_local() if local else moved
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, name: moved})

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _moved(x: Tensor, mesh: DeviceMesh, held: Any, wanted: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(x, mesh, held, run_check=False).redistribute(placements=wanted)


def split_parameters(part: nn.Module, plan: Mapping[str, str], blocks: Sequence[str]) -> set[str]:
    """The parameters that see a part of the tokens alone: undivided, in blocks."""
    return {
        name
        for name, _ in part.named_parameters()
        if inside(name, blocks) and name.rpartition(".")[0] not in plan
    }


def live_blocks(part: nn.Module, blocks: Sequence[str]) -> list[str]:
    """Those of `blocks` that run in `part`: others are on another stage, and have no parameters here."""
    present = dict(part.named_modules())
    return [name for name in blocks if name in present and any(True for _ in present[name].parameters())]


def refuse_finer(model: nn.Module, layout: Layout, degree: int, *, sequence: bool, loss: bool) -> Layout:
    """`layout` with the head among what is divided, where the loss wants it so.

    raises: ConfigError for what needs a tensor axis without one, tokens that cannot be told apart, an unknown head.
    """
    for name, given in (("sequence_parallel", sequence), ("loss_parallel", loss)):
        if given and degree == 1:
            raise ConfigError(
                f"parallel.{name}: it is a part of the tensor axis; set tensor: 2 or more with it"
            )
    if sequence and layout.attention is None:
        raise ConfigError(
            "parallel.sequence_parallel: "
            + (layout.uncut or "this model has no sequences that could be cut")
            + "; use sequence_parallel: false"
        )
    if not loss:
        return layout
    if not layout.head:
        raise ConfigError(
            "parallel.loss_parallel: which layer gives the logits is not known of this model; use loss_parallel: false"
        )
    plan = {**layout.tensor_plan, layout.head: "column"}
    if layout.embedding:
        plan[layout.embedding] = "row"
    return replace(layout, tensor_plan=plan)
