"""Rules for operations that move, cut or join dims and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .flow import Call, Flow, Rule
from .labels import Factor, Labelled, combine, drop, move, reshape, tidy


def view(flow: Flow, call: Call) -> Labelled:
    """Dims merge and split as in memory."""
    reason = f"{call.where}: merges it with another removable dim"
    return reshape(flow.units, flow.of(call.tensors()[0]), call.out.shape, reason)


def permute(flow: Flow, call: Call) -> Labelled:
    """``dims`` (permute) or two dims that change places (transpose, t)."""
    x = flow.of(call.tensors()[0])
    rank = len(x.shape)
    if call.name == "permute":
        order = [dim % rank for dim in call["dims"]]
    else:
        order = list(range(rank))
        if rank > 1:
            one, other = (
                (call["dim0"] % rank, call["dim1"] % rank)
                if "transpose" in call.name or call.name == "swapaxes"
                else (0, 1)
            )
            order[one], order[other] = order[other], order[one]
    return move(x, [order.index(dim) for dim in range(rank)], call.out.shape)


def expand(flow: Flow, call: Call) -> Labelled:
    """New leading dims; dims of size 1 grow."""
    x = flow.of(call.tensors()[0])
    more = call.out.ndim - len(x.shape)
    return move(x, [dim + more for dim in range(len(x.shape))], call.out.shape)


def select(flow: Flow, call: Call) -> Labelled:
    """One position of a dim, which must therefore keep its positions."""
    dim = call["dim"] % call["self"].ndim
    x = _rigid(flow, call, flow.of(call["self"]), [dim])
    return move(x, _without(dim, len(x.shape)), call.out.shape)


def unbind(flow: Flow, call: Call) -> Sequence[Labelled]:
    """Every position of a dim on its own."""
    dim = call["dim"] % call["self"].ndim
    x = _rigid(flow, call, flow.of(call["self"]), [dim])
    return [move(x, _without(dim, len(x.shape)), out.shape) for out in call.out]


def part(flow: Flow, call: Call) -> Labelled:
    """A run of positions of a dim (slice); where they begin and end is checked again after a removal."""
    x = call["self"]
    dim, size = call["dim"] % x.ndim, x.shape[call["dim"]]
    start, end = slice_bounds(call.get("start"), call.get("end"), size)
    if call.get("step", 1) != 1:
        return Labelled(tuple(call.out.shape), _rigid(flow, call, flow.of(x), [dim]).factors)
    labelled = flow.of(x)
    factor = labelled.at(dim)
    if factor and len(factor.dims) == 1 and (start, end) != (0, size):
        flow.count(call, "start", factor.ids[:start])
        flow.count(call, "end", factor.ids[:end])
    return _run(flow, call, labelled, dim, start, end, call.out)


def split(flow: Flow, call: Call) -> Sequence[Labelled] | None:
    """Runs of one dim, one after the other; runs said to be of equal size stay of equal size."""
    tensor = call.tensors()[0]
    x, dim = flow.of(tensor), call["dim"] % tensor.ndim
    outs, start = [], 0
    for out in call.out:
        outs.append(_run(flow, call, x, dim, start, start + out.shape[dim], out))
        start += out.shape[dim]
    by_size = call.name in ("chunk", "unsafe_chunk", "split", "unsafe_split") and not isinstance(
        call.get("split_size"), (list, tuple)
    )
    if by_size and x.at(dim):
        if len({out.shape[dim] for out in call.out}) > 1:
            x = _rigid(flow, call, x, [dim])
        else:
            factors = [out.at(dim) for out in outs]
            for factor in factors[1:]:
                if factor and factors[0]:
                    flow.units.unite(factors[0].ids, factor.ids)
    return outs


def join(flow: Flow, call: Call) -> Labelled:
    """Concatenation: along ``dim`` one after the other, along the rest position by position."""
    tensors = [x for x in call["tensors"] if x.ndim == call.out.ndim]  # torch lets empty ones of one dim pass
    dim = call["dim"] % call.out.ndim
    parts = [flow.of(x) for x in tensors]
    parts = [
        drop(flow.units, x, [dim], "") if len((x.at(dim) or Factor((), np.empty(0))).dims) > 1 else x
        for x in parts
    ]
    flat = [Labelled(_one_at(x.shape, dim), tuple(f for f in x.factors if f.dims != (dim,))) for x in parts]
    rest = combine(flow.units, flat, f"{call.where}: meets a size that is fixed")
    factors = list(rest.factors)
    if any(x.at(dim) for x in parts):
        factors.append(Factor((dim,), np.concatenate([_ids_along(flow, call, x, dim) for x in parts])))
    for x in tensors:
        flow.role(x, *("out" for _ in x.shape))
    return tidy(flow.units, Labelled(tuple(call.out.shape), tuple(factors)))


def stack(flow: Flow, call: Call) -> Labelled:
    """A new dim; the rest position by position."""
    dim = call["dim"] % call.out.ndim
    both = combine(
        flow.units, [flow.of(x) for x in call["tensors"]], f"{call.where}: meets a size that is fixed"
    )
    return move(both, [d if d < dim else d + 1 for d in range(len(both.shape))], call.out.shape)


def repeat(flow: Flow, call: Call) -> Labelled:
    """Whole copies one after the other: a unit then has several positions."""
    x = flow.of(call["self"])
    more = call.out.ndim - len(x.shape)
    x = move(x, [dim + more for dim in range(len(x.shape))], (1,) * more + x.shape)
    factors = [
        Factor(dims, np.tile(ids, [call["repeats"][dim] if x.shape[dim] > 1 else 1 for dim in dims]))
        for dims, ids in x.factors
    ]
    return Labelled(tuple(call.out.shape), tuple(factors))


def repeat_interleave(flow: Flow, call: Call) -> Labelled | None:
    """Every position several times in a row."""
    x, times, dim = flow.of(call.tensors()[0]), call.get("repeats"), call.get("dim")
    if not isinstance(times, int) or dim is None:
        _rigid(flow, call, x, range(len(x.shape)))
        return None
    dim %= len(x.shape)
    factors = [
        Factor(dims, np.repeat(ids, times, axis=dims.index(dim)) if dim in dims else ids)
        for dims, ids in x.factors
    ]
    return Labelled(tuple(call.out.shape), tuple(factors))


def flip(flow: Flow, call: Call) -> Labelled:
    """Positions in reverse."""
    x = flow.of(call["self"])
    turned = {dim % len(x.shape) for dim in call["dims"]}
    factors = [
        Factor(dims, np.flip(ids, tuple(axis for axis, dim in enumerate(dims) if dim in turned)))
        for dims, ids in x.factors
    ]
    return Labelled(x.shape, tuple(factors))


def roll(flow: Flow, call: Call) -> Labelled:
    """Positions shifted by a fixed number: those dims stay."""
    x = flow.of(call["self"])
    dims = [dim % len(x.shape) for dim in call["dims"]] or list(range(len(x.shape)))
    return _rigid(flow, call, x, dims)


def pad(flow: Flow, call: Call) -> Labelled:
    """Positions added at the ends: new entries that stay."""
    x = flow.of(call["self"])
    factors = []
    for number in range(len(call["pad"]) // 2):
        dim = len(x.shape) - 1 - number
        before, after = call["pad"][2 * number : 2 * number + 2]
        if not (before or after) or x.at(dim) is None:
            continue
        if min(before, after) < 0 or call.get("mode", "constant") != "constant":
            x = _rigid(flow, call, x, [dim])
            continue
        factor = x.at(dim)
        assert factor is not None
        if len(factor.dims) > 1:
            x = drop(flow.units, x, [dim], "")
            continue
        ends = [flow.units.new(count) for count in (before, after)]
        for end in ends:
            flow.units.pin(end, f"{call.where}: padding")
        factors.append(Factor((dim,), np.concatenate([ends[0], factor.ids, ends[1]])))
    padded = {factor.dims for factor in factors}
    return Labelled(tuple(call.out.shape), (*(f for f in x.factors if f.dims not in padded), *factors))


def index(flow: Flow, call: Call) -> Labelled:
    """Positions looked up by tensors: the dims looked into stay, the others go through."""
    x, places = flow.of(call["self"]), list(call["indices"])
    looked = [dim for dim, place in enumerate(places) if place is not None]
    width = [places[dim].ndim if str(places[dim].dtype) == "torch.bool" else 1 for dim in looked]
    if max(width, default=1) > 1:  # a mask over several dims
        _rigid(flow, call, x, range(len(x.shape)))
        return Labelled(tuple(call.out.shape))
    x = _rigid(flow, call, x, looked)
    together = looked == list(range(looked[0], looked[-1] + 1))
    first = looked[0] if together else 0
    rank = call.out.ndim - (len(x.shape) - len(looked))  # dims that the looked-up ones give
    to: list[int | None] = []
    passed = 0
    for dim in range(len(x.shape)):
        if dim in looked:
            to.append(None)
        else:
            to.append(passed if passed < first else passed + rank)
            passed += 1
    return move(x, to, call.out.shape)


def index_select(flow: Flow, call: Call) -> Labelled:
    """Positions of one dim looked up by a tensor: that dim stays."""
    x = _rigid(flow, call, flow.of(call["self"]), [call["dim"] % call["self"].ndim])
    return Labelled(tuple(call.out.shape), x.factors)


def slice_bounds(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """Python's bounds of a slice as positions within 0 and ``size``."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


def _run(flow: Flow, call: Call, x: Labelled, dim: int, start: int, end: int, out: Tensor) -> Labelled:
    whole = start == 0 and end == x.shape[dim]
    factor = x.at(dim)
    if factor and len(factor.dims) > 1 and not whole:
        x = drop(flow.units, x, [dim], "")  # parts of a head belong to the head
    factors = [
        Factor(f.dims, f.ids.take(range(start, end), axis=f.dims.index(dim)) if dim in f.dims else f.ids)
        for f in x.factors
    ]
    return tidy(flow.units, Labelled(tuple(out.shape), tuple(factors)))


def _ids_along(flow: Flow, call: Call, x: Labelled, dim: int) -> np.ndarray:
    factor = x.at(dim)
    if factor:
        return factor.ids
    rigid = flow.units.new(x.shape[dim])
    flow.units.pin(rigid, f"{call.where}: joined with a part of fixed size")
    return rigid


def _rigid(flow: Flow, call: Call, x: Labelled, dims: Sequence[int]) -> Labelled:
    return drop(flow.units, x, list(dims), f"{call.where}: takes fixed positions of it")


def _without(gone: int, rank: int) -> list[int | None]:
    return [None if dim == gone else dim - (dim > gone) for dim in range(rank)]


def _one_at(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    return tuple(1 if d == dim else size for d, size in enumerate(shape))


_VIEWS = (
    "view",
    "_unsafe_view",
    "reshape",
    "_reshape_alias",
    "flatten",
    "unflatten",
    "unsqueeze",
    "squeeze",
    "view_as",
    "reshape_as",
    "unsqueeze_",
    "squeeze_",
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_VIEWS, view),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "swapaxes"), permute),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(
        ("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes"),
        split,
    ),
    **dict.fromkeys(("cat", "concat", "concatenate"), join),
    **dict.fromkeys(("constant_pad_nd", "pad"), pad),
    "select": select,
    "unbind": unbind,
    "slice": part,
    "stack": stack,
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    "flip": flip,
    "roll": roll,
    "index": index,
    "index_select": index_select,
}
