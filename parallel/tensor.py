"""Tensor parallelism: matrices divided by columns (output features) or rows (input features) over one axis."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from ..errors import ConfigError
from .layout import TENSOR_STYLES, Layout
from .mesh import Mesh


def resolve_plan(model: nn.Module, layout: Layout, degree: int) -> dict[str, str]:
    """Module name → "column" or "row", every glob of the plan resolved and checked against the whole model.

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
            features = module.out_features if style == "column" else module.in_features
        elif isinstance(module, nn.Embedding):
            features = module.embedding_dim if style == "column" else module.num_embeddings
        else:
            raise ConfigError(
                f"tensor plan: {name} is a {type(module).__name__}; only Linear and Embedding can be divided"
            )
        if features % degree:
            side = "output" if style == "column" else "input"
            raise ConfigError(
                f"parallel.tensor={degree} does not divide the {features} {side} features of {name}"
            )
        tied = sorted({o for p in module.parameters(recurse=False) for o in owners[id(p)]} - {name})
        if tied:
            raise ConfigError(
                f"tensor plan: {name} shares a parameter with {', '.join(tied)}; a divided parameter cannot be "
                "tied; untie them or leave the module out of the plan"
            )


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
            if plan.get(name) == "column":
                open_columns = [*open_columns, name]
            elif plan.get(name) == "row":
                open_columns = []
        after[member] = open_columns
    return after


def divide(part: nn.Module, plan: dict[str, str], gathered: set[str], mesh: Mesh) -> None:
    """Divide the modules of `part` in place over mesh.tensor; names of the plan that it lacks are passed over.

    gathered: column modules whose output is made whole again at once (a head whose logits the loss wants).
    Parameters of other modules stay plain tensors, equal on all ranks of the axis, with equal gradients.
    cost: per pair of column and row, one all-reduce of activations forward and one backward.
    """
    if not plan:
        return  # and nothing is imported for it
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        ParallelStyle,
        RowwiseParallel,
        parallelize_module,
    )

    styles: dict[str, ParallelStyle] = {}
    for name, style in plan.items():
        try:
            module = part.get_submodule(name)
        except AttributeError:
            continue  # inside a module of another stage
        if not isinstance(module, nn.Linear | nn.Embedding) or module._parameters.get("weight") is None:
            continue  # another stage's: an Identity here, or without its weight
        if style == "column":
            styles[name] = ColwiseParallel(output_layouts=Replicate() if name in gathered else None)
        elif isinstance(module, nn.Embedding):
            styles[name] = RowwiseParallel(input_layouts=Replicate())
        else:
            styles[name] = RowwiseParallel()
    if styles:
        with _alone([part.get_submodule(name) for name in styles]):
            parallelize_module(part, mesh.axes("tensor"), styles)


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
