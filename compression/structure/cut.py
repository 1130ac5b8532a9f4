"""Taking units out of a model, the record of it, and doing it again from the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .graph import Graph, Group, Kept
from .settle import attributes_of, first_mismatch, set_attributes
from .trace import named_tensors

CutRecord = dict[str, Any]
"""JSON: ``kept`` {parameter or buffer: {dim: [positions]}}, ``attributes`` {module: {name: value}}, ``blocks``
{module: what its forward gives}."""


class PassThrough(nn.Module):
    """Stands where a block was: gives its first input back, in the form in which the block gave its output."""

    def __init__(self, returns: str) -> None:
        super().__init__()
        self.returns = returns

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first tensor among the inputs."""
        first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        return {"tensor": first, "tuple": (first,), "list": [first]}[self.returns]

    def extra_repr(self) -> str:
        """What it gives."""
        return self.returns


def cut(model: nn.Module, graph: Graph, kept: Kept, *, blocks: Sequence[str] = ()) -> CutRecord:
    """Take out of ``model``, in place, every unit that ``kept`` does not name, and whole ``blocks``.

    model:  the one that was traced, or one of the same shapes.
    kept:   group name → ascending numbers of the units that stay; groups that are not named stay whole.
    returns: the record for `recut`; ``kept`` in it is what optimizer moments follow.
    raises:  ConfigError for unknown or fixed groups and wrong numbers; before anything is changed, also where the
             cut model would compute something else than the graph promises.
    """
    known = {block.name: block for block in graph.blocks}
    for name in blocks:
        if name not in known:
            raise ConfigError(
                f"structure: {name!r} is no block that may go; blocks: {', '.join(known) or 'none'}"
            )
    if mismatch := first_mismatch(model, graph, kept):
        raise ConfigError(f"structure: cutting {', '.join(kept)}: {mismatch.text}")
    inside = tuple(f"{name}." for name in blocks)
    record: CutRecord = {
        "kept": {},
        "attributes": {
            name: values
            for name, values in attributes_of(graph, model, kept).items()
            if not f"{name}.".startswith(inside)
        },
        "blocks": {name: known[name].returns for name in blocks},
    }
    for (name, dim), positions in graph.removed(kept).items():
        if not name.startswith(inside):
            record["kept"].setdefault(name, {})[str(dim)] = positions.tolist()
    recut(model, record)
    return record


def recut(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Do to a fresh ``model``, in place, what `cut` did when it gave ``record``. Tied parameters stay tied.

    raises: ConfigError where the model has not the parameters and sizes that the record was made for.
    """
    for name, returns in record.get("blocks", {}).items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, PassThrough(returns))
    tensors = dict(named_tensors(model))
    replaced: dict[int, Tensor] = {}
    for name, dims in record["kept"].items():
        if name not in tensors:
            raise ConfigError(f"structure: the record cuts {name!r}, which this model does not have")
        replaced[id(tensors[name])] = _sliced(name, tensors[name], dims)
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for leaf, tensor in held.items():
                if tensor is not None and id(tensor) in replaced:
                    held[leaf] = replaced[id(tensor)]  # type: ignore[assignment]
    set_attributes(model, record["attributes"])


def allowed(group: Group, wanted: float, multiple: int = 1) -> int:
    """How many units of ``group`` to keep: the multiple of ``multiple`` nearest to ``wanted``, at least one of it.

    A group that is smaller than ``multiple``, or fixed, stays as it is; so does one of which ``wanted`` is all.
    """
    if group.fixed is not None or group.size < multiple or wanted >= group.size:
        return group.size
    count = max(int(wanted / multiple + 0.5), 1) * multiple
    return min(count, group.size // multiple * multiple)


def _sliced(name: str, tensor: Tensor, dims: Mapping[str, Sequence[int]]) -> Tensor:
    sliced = tensor.detach()
    for dim, positions in dims.items():
        index = torch.as_tensor(positions, dtype=torch.long, device=tensor.device)
        if int(dim) >= tensor.ndim or (len(positions) and positions[-1] >= tensor.shape[int(dim)]):
            raise ConfigError(
                f"structure: the record keeps {len(positions)} positions up to {positions[-1]} along dim {dim} of"
                f" {name!r}, which has the shape {list(tensor.shape)} here"
            )
        sliced = sliced.index_select(int(dim), index)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(sliced, requires_grad=tensor.requires_grad)
    return sliced
