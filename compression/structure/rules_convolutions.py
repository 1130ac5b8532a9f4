"""Rules for convolutions: plain, grouped, depthwise and transposed."""

from __future__ import annotations

from .flow import Call, Flow, Rule
from .labels import Factor, Labelled, drop, move
from .rules_products import FIXED, biased, contract, produces


def convolution(flow: Flow, call: Call) -> Labelled:
    """[batch, in, …] with [out, in / groups, …]: depthwise and grouped ones too, and transposed."""
    x, weight, bias = flow.of(call.tensors()[0]), flow.of(call["weight"]), call.get("bias")
    transposed = bool(call.get("transposed", "transpose" in call.name))
    groups = call["groups"]
    flow.role(call["weight"], *(("in", "out") if transposed else ("out", "in")))
    produces(flow, weight, int(transposed), "convolution")
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
    return biased(flow, call, move(out, [channel], tuple(call.out.shape)), bias, channel)


def _grouped(flow: Flow, call: Call, inside: Labelled, weight: Labelled, groups: int) -> Labelled:
    """Whole groups go, or the same channels of every group: whichever leaves more to choose from."""
    units, reason = flow.units, f"{call.where}: {FIXED}"
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


RULES: dict[str, Rule] = dict.fromkeys(
    ("convolution", *(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3))),
    convolution,
)
