"""Tensor parallelism: matrices divided by columns (output features) or rows (input features) over one axis."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError
from .features import note_divided
from .heads import QKV_MATRICES, deal_heads, divide_counts
from .layout import COLUMN_STYLES, TENSOR_STYLES, Layout
from .mesh import Mesh
from .split_tokens import inside
from .whole import is_divided


def resolve_plan(model: nn.Module, layout: Layout, degree: int) -> dict[str, str]:
    """Module name → "column", "qkv" or "row", every glob of the plan resolved and checked against the whole model.

    Where several globs name a module, the last one counts.
    raises: ConfigError for a glob that names nothing, an unknown style, a module that cannot be divided, a
    number of features or of `layout.divisible` that `degree` does not divide, and a tied parameter.
    """
    for what, number in layout.divisible.items():
        if number % degree:
            fitting = [d for d in range(1, number + 1) if number % d == 0]
            raise ConfigError(
                f"parallel.tensor={degree} does not divide the model's {number} {what}; use one of {fitting}"
            )
    modules = {name: module for name, module in model.named_modules() if name}
    plan: dict[str, str] = {}
    for pattern, style in layout.tensor_plan.items():
        if style not in TENSOR_STYLES:
            raise ConfigError(f"tensor plan {pattern!r}: {style!r} is none of {', '.join(TENSOR_STYLES)}")
        names = [name for name in modules if fnmatchcase(name, pattern)]
        if not names:
            raise ConfigError(
                f"tensor plan: {pattern!r} names no module; the model has {', '.join(modules) or 'none'}"
            )
        plan.update(dict.fromkeys(names, style))
    plan = {name: style for name, style in plan.items() if style != "replicate"}
    if not plan:
        raise ConfigError(
            f"parallel.tensor={degree}, but no module is to be divided, so every rank would do the same work; "
            'set tensor=1 or give a tensor plan, such as {"blocks.*.up": column, "blocks.*.down": row}'
        )
    _check_modules(model, modules, plan, degree)
    return plan


def _check_modules(
    model: nn.Module, modules: dict[str, nn.Module], plan: dict[str, str], degree: int
) -> None:
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name, style in plan.items():
        module = modules[name]
        if isinstance(module, nn.Linear):
            features = module.out_features if style in COLUMN_STYLES else module.in_features
        elif isinstance(module, nn.Embedding):
            features = module.embedding_dim if style == "column" else module.num_embeddings
        elif is_transposed(module):
            features = module.nf if style in COLUMN_STYLES else module.nx
        else:
            raise ConfigError(
                f"tensor plan: {name} is a {type(module).__name__}; only Linear and Embedding can be divided"
            )
        if style == "qkv" and (isinstance(module, nn.Embedding) or features % (QKV_MATRICES * degree)):
            raise ConfigError(
                f"tensor plan: {name} is no query, key and value in one matrix for parallel.tensor={degree}: want a "
                f"Linear whose {features} output features are three times a multiple of {degree}"
            )
        if features % degree:
            side = "output" if style in COLUMN_STYLES else "input"
            raise ConfigError(
                f"parallel.tensor={degree} does not divide the {features} {side} features of {name}"
            )
        tied = sorted({o for p in module.parameters(recurse=False) for o in owners[id(p)]} - {name})
        if tied and not all(_by_rows(modules[one], plan.get(one)) for one in (name, *tied)):
            raise ConfigError(
                f"tensor plan: {name} shares a parameter with {', '.join(tied)}; a divided parameter cannot be "
                "tied; untie them or leave the module out of the plan"
            )


def is_transposed(module: nn.Module) -> TypeGuard[Any]:
    """Whether `module` is transformers' Conv1D, a linear layer whose weight is [in, out]; by its form alone."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def cut_dim(module: nn.Module, style: str) -> int:
    """Which dim of the weight of `module` this style of a plan divides."""
    return int((style in COLUMN_STYLES) == is_transposed(module))


def _by_rows(module: nn.Module, style: str | None) -> bool:
    """Whether the first dim of its weight is divided, as that of a head and of the embedding that it is tied to."""
    return style == ("row" if isinstance(module, nn.Embedding) else "column") and not is_transposed(module)


def _inside(model: nn.Module, name: str) -> Iterator[str]:
    for inner, _ in model.get_submodule(name).named_modules():
        yield f"{name}.{inner}".strip(".")


def open_after(model: nn.Module, order: tuple[str, ...], plan: dict[str, str]) -> dict[str, list[str]]:
    """For each module of `order`: the column-divided modules whose output is still divided when it is done.

    A row-divided module makes the activations whole again. After a module with open columns a pipeline must not
    cut: what flows there is a part of the activation.
    """
    open_columns: list[str] = []
    after = {}
    for member in order:
        for name in _inside(model, member):
            if plan.get(name) in COLUMN_STYLES:
                open_columns = [*open_columns, name]
            elif plan.get(name) == "row":
                open_columns = []
        after[member] = open_columns
    return after


def divide(
    part: nn.Module,
    plan: dict[str, str],
    gathered: set[str],
    mesh: Mesh,
    *,
    counts: Sequence[str] = (),
    parts_of_tokens: Sequence[str] = (),
    parts_of_classes: str = "",
) -> None:
    """Divide the modules of `part` in place over mesh.tensor; names of the plan that it lacks are passed over.

    gathered: column modules whose output is made whole again at once (a head whose logits the loss wants).
    counts: as `Layout.counts`.
    parts_of_tokens: blocks whose row layers give each rank its part of the tokens (see `split_tokens`).
    parts_of_classes: the head, if its logits stay divided, as a DTensor.
    Parameters of other modules stay plain tensors, equal on all ranks of the axis, with equal gradients.
    cost: per pair of column and row, one all-reduce of activations forward and one backward.
    """
    if not plan:
        return  # and nothing is imported for it
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        ParallelStyle,
        RowwiseParallel,
        parallelize_module,
    )

    from .transposed import TransposedColumn, TransposedRow

    styles: dict[str, ParallelStyle] = {}
    for name, style in plan.items():
        try:
            module = part.get_submodule(name)
        except AttributeError:
            continue  # inside a module of another stage
        turned = is_transposed(module)
        if not (turned or isinstance(module, nn.Linear | nn.Embedding)) or not _has_weight(module):
            continue  # another stage's: an Identity here, or without its weight
        if style in COLUMN_STYLES:
            kind = TransposedColumn if turned else ColwiseParallel
            whole = name in gathered and name != parts_of_classes
            styles[name] = kind(
                output_layouts=Replicate() if whole else None, use_local_output=name != parts_of_classes
            )
        elif isinstance(module, nn.Embedding):
            styles[name] = RowwiseParallel(input_layouts=Replicate())
        else:
            kind = TransposedRow if turned else RowwiseParallel
            styles[name] = kind(output_layouts=Shard(1) if inside(name, parts_of_tokens) else None)
    if styles:
        ties = _ties(part, styles)
        with _alone([part.get_submodule(name) for name in styles]):
            parallelize_module(part, mesh.axes("tensor"), styles)
        for first, others in ties.items():
            for name in others:
                part.get_submodule(name).register_parameter("weight", part.get_submodule(first).weight)  # pyright: ignore[reportArgumentType]
        parts = [n for n in styles if plan[n] in COLUMN_STYLES and n not in {*gathered, parts_of_classes}]
        dealt = {name: plan[name] for name in parts if plan[name] == "qkv"}
        for name in dealt:
            deal_heads(part.get_submodule(name), mesh.axes("tensor"))
        for name in parts:
            matrices = QKV_MATRICES if name in dealt else 1
            note_divided(part.get_submodule(name), mesh.axes("tensor"), matrices)
        divide_counts(part, dealt, counts, mesh.tensor)


def _ties(part: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Of layers that share a weight, the first → the others: each is divided apart, into equal parts."""
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(id(part.get_submodule(name).weight), []).append(name)
    return {held[0]: held[1:] for held in found.values()}


def _has_weight(module: nn.Module) -> bool:
    return module._parameters.get("weight") is not None


def gathered_of(model: nn.Module, layout: Layout, plan: dict[str, str]) -> set[str]:
    """The columns that no row makes whole again: their output is gathered at once."""
    opened = open_after(model, layout.cuts or tuple(name for name, _ in model.named_children()), plan)
    return set(next(reversed(opened.values()), []))


@torch.no_grad()
def cut_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give each gradient its parameter's parts: DTensor leaves that of a word-divided embedding whole on every rank."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None or not is_divided(parameter) or not is_divided(gradient):
            continue
        if gradient.placements != parameter.placements:
            parameter.grad = gradient.redistribute(placements=parameter.placements)


@torch.no_grad()
def sum_parts(parameters: Iterable[nn.Parameter], mesh: Mesh) -> None:
    """Add the gradients of these parameters over the tensor axis: each rank has that of its part of the activations.

    cost: one all-reduce of them all for each of their dtypes.
    """
    found: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            local = parameter.grad.to_local() if is_divided(parameter.grad) else parameter.grad
            found.setdefault(local.dtype, []).append(local)
    for gradients in found.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat, group=mesh.axes("tensor").get_group())
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


@contextmanager
def _alone(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Each of ``layers`` without its children and buffers, such as a quantizer of its inputs and a step size.

    torch would divide a child like the layer it is in, and make DTensors of buffers; they stay as they are, equal on
    all ranks of the axis.
    """
    kept = [(layer, dict(layer._modules), dict(layer._buffers)) for layer in layers]
    for layer in layers:
        layer._modules.clear()
        layer._buffers.clear()
    try:
        yield
    finally:
        for layer, children, buffers in kept:
            layer._modules.update(children)
            layer._buffers.update(buffers)
