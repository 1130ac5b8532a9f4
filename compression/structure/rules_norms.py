"""Rules for normalisations, reductions, pooling and gates."""

from __future__ import annotations

from collections.abc import Sequence

from .flow import Call, Flow, Rule
from .labels import Factor, Labelled, combine, drop, move
from .rules_products import FIXED, along


def channel_norm(flow: Flow, call: Call) -> Sequence[Labelled]:
    """Batch and instance norm: statistics, scale and shift by channel (dim 1)."""
    x = flow.of(call["input"])
    operands = [x]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (tensor := call.get(name)) is not None:
            operands.append(along(flow.of(tensor), 1, len(x.shape)))
            flow.role(tensor, "scale")
    out = combine(flow.units, operands, f"{call.where}: {FIXED}")
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
    out = combine(flow.units, operands, f"{call.where}: {FIXED}")
    return [out, *(Labelled(tuple(r.shape)) for r in call.results()[1:])]


def group_norm(flow: Flow, call: Call) -> Sequence[Labelled]:
    """Groups of neighbouring channels, each with its own statistics; as in a grouped convolution."""
    groups = call.get("num_groups", call.get("group"))
    x = flow.of(call["input"])
    operands = [x]
    for name in ("weight", "bias"):
        if (tensor := call.get(name)) is not None:
            operands.append(along(flow.of(tensor), 1, len(x.shape)))
            flow.role(tensor, "scale")
    out = combine(flow.units, operands, f"{call.where}: {FIXED}")
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


def _inside(flow: Flow, x: Labelled, dims: Sequence[int]) -> Labelled:
    """Dims among ``dims`` that a view has split from others belong to those others as a whole."""
    split = [dim for f in x.factors if not set(f.dims) <= set(dims) for dim in f.dims if dim in dims]
    return drop(flow.units, x, split, "") if split else x


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
    **dict.fromkeys(("batch_norm", "instance_norm", "native_batch_norm"), channel_norm),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm"), layer_norm),
    **dict.fromkeys(("group_norm", "native_group_norm"), group_norm),
    **dict.fromkeys(_REDUCTIONS, reduction),
    **dict.fromkeys(_SLIDING, sliding),
    "glu": gated,
}
