"""Rules for operations that compute: products, convolutions, normalisations, attention, reductions, pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .flow import Call, Flow, Rule
from .labels import Factor, Labelled, combine, drop, move

_FIXED = "meets a size that is fixed (the model's input, or a number that nothing can change)"


def contract(
    flow: Flow,
    call: Call,
    operands: Sequence[tuple[Labelled, Sequence[int]]],
    rank: int,
    *,
    times: tuple[int, ...] = (),
) -> Labelled:
    """Sum of products: each operand's dims go to dims of the result (0 … rank - 1) or to summed ones (from rank on).

    A summed dim that a view has split from another one is the inside of a unit: the width of a head.
    """
    count = max(max(to) for _, to in operands) + 1
    moved = []
    for x, to in operands:
        shape = [1] * count
        for dim, place in enumerate(to):
            shape[place] = x.shape[dim]
        x = move(x, to, shape)
        summed = range(rank, count)
        split = [f for f in x.factors if len(f.dims) > 1 and set(f.dims) & set(summed)]
        x = drop(flow.units, x, [dim for f in split for dim in f.dims if dim in summed], "")
        for factor in x.factors:
            if split and not set(factor.dims) & set(summed):
                flow.units.mark(factor.ids, "heads")
        moved.append(x)
    both = combine(flow.units, moved, f"{call.where}: {_FIXED}")
    flow.pay(both, Labelled(times))
    return move(both, [*range(rank), *[None] * (count - rank)], both.shape[:rank])


def linear(flow: Flow, call: Call) -> Labelled:
    """[…, in] × [out, in] + [out] → […, out]."""
    x, weight, bias = flow.of(call["input"]), flow.of(call["weight"]), call.get("bias")
    flow.role(call["weight"], "out", "in")
    flow.role(bias, "out")
    rank = len(x.shape)
    out = contract(flow, call, [(x, [*range(rank - 1), rank]), (weight, [rank - 1, rank])], rank)
    return _biased(flow, call, out, bias, rank - 1)


def addmm(flow: Flow, call: Call) -> Labelled:
    """bias + [rows, in] × [in, out]."""
    flow.role(call["mat2"], "in", "out")
    flow.role(call["self"], *["out"] * call["self"].ndim)
    out = contract(flow, call, [(flow.of(call["mat1"]), [0, 2]), (flow.of(call["mat2"]), [2, 1])], 2)
    bias = flow.of(call["self"])
    rows = move(
        bias,
        [d + 2 - len(bias.shape) for d in range(len(bias.shape))],
        (1,) * (2 - len(bias.shape)) + bias.shape,
    )
    return combine(flow.units, [out, rows], f"{call.where}: {_FIXED}")


def matmul(flow: Flow, call: Call) -> Labelled:
    """[…, M, K] × […, K, N]; vectors as in torch. Between two activations K stays: its size scales the product."""
    left, right = call.tensors()[:2]
    flow.role(right, "in", "out")
    a, b = flow.of(left), flow.of(right)
    rank = max(len(a.shape), len(b.shape), 2)
    a_to, b_to = _matmul_places(len(a.shape), rank, False), _matmul_places(len(b.shape), rank, True)
    if not flow.parameter(right) and not flow.parameter(left):
        a, b = (
            _keep_width(flow, call, a, len(a.shape) - 1),
            _keep_width(flow, call, b, max(len(b.shape) - 2, 0)),
        )
    out = contract(flow, call, [(a, a_to), (b, b_to)], rank)
    gone = [rank - 2] * (len(a.shape) == 1) + [rank - 1] * (len(b.shape) == 1)
    to = [None if dim in gone else dim - sum(g < dim for g in gone) for dim in range(rank)]
    return move(out, to, call.out.shape)


def attention(flow: Flow, call: Call) -> Labelled:
    """Scaled dot-product attention on [batch…, heads, tokens, width]; grouped-query heads are repeated."""
    query, key, value = (flow.of(call[name]) for name in ("query", "key", "value"))
    rank, mask = len(query.shape), call.get("attn_mask")
    if call.get("enable_gqa"):
        key, value = (
            _repeated(x, rank - 3, query.shape[rank - 3] // x.shape[rank - 3]) for x in (key, value)
        )
    batch = [*range(rank - 2)]
    query, key = (_keep_width(flow, call, x, rank - 1) for x in (query, key))
    # Places: batch…, query token, key token; the width is summed.
    scores = contract(flow, call, [(query, [*batch, rank - 2, rank]), (key, [*batch, rank - 1, rank])], rank)
    if mask is not None:
        seen = flow.of(mask)
        seen = move(
            seen,
            [d + rank - len(seen.shape) for d in range(len(seen.shape))],
            (1,) * (rank - len(seen.shape)) + seen.shape,
        )
        scores = combine(flow.units, [scores, seen], f"{call.where}: {_FIXED}")
    out = contract(flow, call, [(scores, [*batch, rank - 2, rank]), (value, [*batch, rank, rank - 1])], rank)
    return out


def convolution(flow: Flow, call: Call) -> Labelled:
    """[batch, in, …] with [out, in / groups, …]: depthwise and grouped ones too, and transposed."""
    x, weight, bias = flow.of(call.tensors()[0]), flow.of(call["weight"]), call.get("bias")
    transposed = bool(call.get("transposed", "transpose" in call.name))
    groups = call["groups"]
    flow.role(call["weight"], *(("in", "out") if transposed else ("out", "in")))
    flow.role(bias, "out")
    rank = len(x.shape)
    channel = rank - len(weight.shape) + 1  # 1, or 0 for one image without a batch dim
    x = drop(flow.units, x, [d for d in range(rank) if d != channel], f"{call.where}: slides over it")
    for factor in weight.factors:
        if min(factor.dims) > 1:
            flow.units.mark(factor.ids, "inner")  # the kernel's height and width are nobody's units
    weight = drop(flow.units, weight, range(2, len(weight.shape)), f"{call.where}: size of the kernel")
    inside = Labelled((x.shape[channel],), tuple(Factor((0,), f.ids) for f in x.factors))
    flat = Labelled(weight.shape[:2], weight.factors)
    window = (x.shape if transposed else tuple(call.out.shape))[channel + 1 :]
    times = (*x.shape[:channel], *window, *weight.shape[2:])  # how often every pair of channels is multiplied
    if groups == 1:
        out = contract(flow, call, [(inside, [1]), (flat, [1, 0] if transposed else [0, 1])], 1, times=times)
    elif transposed:
        both = [Factor((0,), f.ids) for f in (*inside.factors, *flat.factors)]
        for factor in both:
            flow.units.pin(factor.ids, f"{call.where}: transposed and grouped")
        flow.pay(inside, Labelled((flat.shape[1],)), Labelled(times))
        out = Labelled((call.out.shape[channel],))
    else:
        out = _grouped(flow, call, inside, flat, groups)
        flow.pay(
            out,
            Labelled(flat.shape[1:], tuple(Factor((0,), f.ids) for f in flat.factors if f.dims == (1,))),
            Labelled(times),
        )
    return _biased(flow, call, move(out, [channel], tuple(call.out.shape)), bias, channel)


def _grouped(flow: Flow, call: Call, inside: Labelled, weight: Labelled, groups: int) -> Labelled:
    """Whole groups go, or the same channels of every group: whichever leaves more to choose from."""
    units, reason = flow.units, f"{call.where}: {_FIXED}"
    source, result, width = inside.at(0), weight.at(0), weight.at(1)
    assert result is not None  # more than one group has more than one output
    outputs = result.ids.reshape(groups, -1)
    if groups >= weight.shape[1]:
        blocks = units.collapse(outputs, 1)
        if source:
            units.unite(units.collapse(source.ids.reshape(groups, -1), 1), blocks)
        else:
            units.pin(blocks, reason)
        if width:
            units.pin(width.ids, f"{call.where}: width of one group")
        flow.count(call, "groups", blocks)
    else:
        assert width is not None  # fewer groups than channels in each of them
        units.collapse(outputs, 0)
        if source:
            units.unite(units.collapse(source.ids.reshape(groups, -1), 0), width.ids)
        else:
            units.pin(width.ids, reason)
    return Labelled(weight.shape[:1], (result,))


def embedding(flow: Flow, call: Call) -> Labelled:
    """[vocabulary, width] looked up by numbers of any shape."""
    flow.role(call["weight"], "in", "out")
    weight = drop(flow.units, flow.of(call["weight"]), [0], f"{call.where}: vocabulary or positions")
    numbers = flow.of(call["indices"])
    drop(flow.units, numbers, range(len(numbers.shape)), f"{call.where}: used as numbers of rows")
    return move(weight, [None, call.out.ndim - 1], tuple(call.out.shape))


def channel_norm(flow: Flow, call: Call) -> Sequence[Labelled]:
    """Batch and instance norm: statistics, scale and shift by channel (dim 1)."""
    x = flow.of(call["input"])
    operands = [x]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (tensor := call.get(name)) is not None:
            operands.append(_at(flow.of(tensor), 1, len(x.shape)))
            flow.role(tensor, "scale")
    out = combine(flow.units, operands, f"{call.where}: {_FIXED}")
    return [out, *(Labelled(tuple(r.shape)) for r in call.results()[1:])]


def layer_norm(flow: Flow, call: Call) -> Sequence[Labelled]:
    """Layer and RMS norm over the last dims, with scale and shift of their shape."""
    x, over = flow.of(call["input"]), len(call["normalized_shape"])
    rank = len(x.shape)
    x = _inside(flow, x, range(rank - over, rank))
    operands = [x]
    for name in ("weight", "bias"):
        if (tensor := call.get(name)) is not None:
            own = flow.of(tensor)
            operands.append(move(own, range(rank - over, rank), (1,) * (rank - over) + own.shape))
            flow.role(tensor, *["scale"] * over)
    out = combine(flow.units, operands, f"{call.where}: {_FIXED}")
    return [out, *(Labelled(tuple(r.shape)) for r in call.results()[1:])]


def group_norm(flow: Flow, call: Call) -> Sequence[Labelled]:
    """Groups of neighbouring channels, each with its own statistics; as in a grouped convolution."""
    groups = call.get("num_groups", call.get("group"))
    x = flow.of(call["input"])
    operands = [x]
    for name in ("weight", "bias"):
        if (tensor := call.get(name)) is not None:
            operands.append(_at(flow.of(tensor), 1, len(x.shape)))
            flow.role(tensor, "scale")
    out = combine(flow.units, operands, f"{call.where}: {_FIXED}")
    factor = out.at(1)
    if factor and len(factor.dims) == 1 and groups > 1:
        blocks = factor.ids.reshape(groups, -1)
        if groups >= blocks.shape[1]:
            flow.count(
                call, "num_groups" if "num_groups" in call.given else "group", flow.units.collapse(blocks, 1)
            )
        else:
            flow.units.collapse(blocks, 0)
    return [out, *(Labelled(tuple(r.shape)) for r in call.results()[1:])]


def reduction(flow: Flow, call: Call) -> Sequence[Labelled]:
    """Dims summed, averaged or searched for their largest; a dim that a view has split off goes as a whole."""
    x = flow.of(call.tensors()[0])
    rank, dims, keep = len(x.shape), call.get("dim"), bool(call.get("keepdim", False))
    dims = (
        list(range(rank)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    )
    dims = [dim % rank for dim in dims] if rank else []
    if call.name in _POSITIONS:
        x = drop(flow.units, x, dims, f"{call.where}: gives positions in it as numbers")
    x = _inside(flow, x, dims)
    to: list[int | None] = []
    for dim in range(rank):
        to.append(None if dim in dims else dim if keep else dim - sum(d < dim for d in dims))
    return [move(x, to, tuple(out.shape)) for out in call.results()]


def sliding(flow: Flow, call: Call) -> Sequence[Labelled]:
    """Pooling, resizing, and other work on the last dims of [batch, channels, …]: those keep their sizes."""
    tensor = call.tensors()[0]
    x, results = flow.of(tensor), call.results()
    spatial = _spatial(call.name)
    x = drop(flow.units, x, range(tensor.ndim - spatial, tensor.ndim), f"{call.where}: slides over it")
    return [Labelled(tuple(out.shape), x.factors) for out in results]


def gated(flow: Flow, call: Call) -> Labelled:
    """Half of a dim gates the other half."""
    x, dim = flow.of(call["self"]), call["dim"] % call["self"].ndim
    factor = x.at(dim)
    if factor is None or len(factor.dims) > 1:
        return Labelled(tuple(call.out.shape), drop(flow.units, x, [dim], "").factors)
    half = len(factor.ids) // 2
    flow.units.unite(factor.ids[:half], factor.ids[half:])
    factors = [Factor(f.dims, f.ids[:half]) if f.dims == (dim,) else f for f in x.factors]
    return Labelled(tuple(call.out.shape), tuple(factors))


# ── parts


def _biased(flow: Flow, call: Call, out: Labelled, bias: object, dim: int) -> Labelled:
    if bias is None:
        return out
    added = _at(flow.of(bias), dim, len(out.shape))  # type: ignore[arg-type]
    return combine(flow.units, [out, added], f"{call.where}: {_FIXED}")


def _at(vector: Labelled, dim: int, rank: int) -> Labelled:
    """A vector as it broadcasts along ``dim``."""
    shape = [1] * rank
    shape[dim] = vector.shape[0]
    return move(vector, [dim], shape)


def _inside(flow: Flow, x: Labelled, dims: Sequence[int]) -> Labelled:
    """Dims among ``dims`` that a view has split from others belong to those others as a whole."""
    split = [dim for f in x.factors if not set(f.dims) <= set(dims) for dim in f.dims if dim in dims]
    return drop(flow.units, x, split, "") if split else x


def _keep_width(flow: Flow, call: Call, x: Labelled, dim: int) -> Labelled:
    factor = x.at(dim)
    if factor is None or len(factor.dims) > 1:
        return x
    return drop(flow.units, x, [dim], f"{call.where}: the width of a head scales the product")


def _repeated(x: Labelled, dim: int, times: int) -> Labelled:
    shape = tuple(size * times if d == dim else size for d, size in enumerate(x.shape))
    factors = [
        Factor(dims, np.repeat(ids, times, axis=dims.index(dim)) if dim in dims else ids)
        for dims, ids in x.factors
    ]
    return Labelled(shape, tuple(factors))


def _matmul_places(rank: int, out: int, right: bool) -> list[int]:
    """Where the dims of a factor go: rows to out - 2, columns to out - 1, the summed dim to out."""
    if rank == 1:
        return [out]
    batch = list(range(out - rank, out - 2))
    return [*batch, out, out - 1] if right else [*batch, out - 2, out]


def _spatial(name: str) -> int:
    return next((int(digit) for digit in "123" if f"{digit}d" in name), 2)


_POSITIONS = ("argmax", "argmin", "max", "min", "sort", "topk", "median", "mode", "kthvalue")
_REDUCTIONS = (
    "sum",
    "mean",
    "amax",
    "amin",
    "prod",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "logsumexp",
    "linalg_vector_norm",
    "norm",
    "all",
    "any",
    "argmax",
    "argmin",
    "max",
    "min",
)
_SLIDING = (
    *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)),
    *(f"_adaptive_avg_pool{n}d" for n in (2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (2, 3)),
    *(
        f"upsample_{kind}"
        for kind in (
            "nearest1d",
            "nearest2d",
            "nearest3d",
            "linear1d",
            "bilinear2d",
            "bicubic2d",
            "trilinear3d",
        )
    ),
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
)
RULES: dict[str, Rule] = {
    "linear": linear,
    "addmm": addmm,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), matmul),
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(
        ("convolution", *(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3))),
        convolution,
    ),
    "embedding": embedding,
    **dict.fromkeys(("batch_norm", "instance_norm", "native_batch_norm"), channel_norm),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm"), layer_norm),
    **dict.fromkeys(("group_norm", "native_group_norm"), group_norm),
    **dict.fromkeys(_REDUCTIONS, reduction),
    **dict.fromkeys(_SLIDING, sliding),
    "glu": gated,
}
