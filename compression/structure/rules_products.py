"""Rules for sums of products: linear layers, matrix products, einsum, attention, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .flow import Call, Flow, Rule
from .labels import Factor, Labelled, combine, drop, move

FIXED = "meets a size that is fixed, such as the model's input"


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
        moved.append(drop(flow.units, x, [dim for f in split for dim in f.dims if dim in summed], ""))
    both = combine(flow.units, moved, f"{call.where}: {FIXED}")
    flow.pay(both, Labelled(times))
    return move(both, [*range(rank), *[None] * (count - rank)], both.shape[:rank])


def linear(flow: Flow, call: Call) -> Labelled:
    """[…, in] × [out, in] + [out] → […, out]."""
    x, weight, bias = flow.of(call["input"]), flow.of(call["weight"]), call.get("bias")
    flow.role(call["weight"], "out", "in")
    flow.role(bias, "out")
    produces(flow, weight, 0, "linear")
    rank = len(x.shape)
    out = contract(flow, call, [(x, [*range(rank - 1), rank]), (weight, [rank - 1, rank])], rank)
    return biased(flow, call, out, bias, rank - 1)


def addmm(flow: Flow, call: Call) -> Labelled:
    """bias + [rows, in] × [in, out]."""
    flow.role(call["mat2"], "in", "out")
    flow.role(call["self"], *["out"] * call["self"].ndim)
    produces(flow, flow.of(call["mat2"]), 1, "linear")
    out = contract(flow, call, [(flow.of(call["mat1"]), [0, 2]), (flow.of(call["mat2"]), [2, 1])], 2)
    bias = flow.of(call["self"])
    rows = move(
        bias,
        [d + 2 - len(bias.shape) for d in range(len(bias.shape))],
        (1,) * (2 - len(bias.shape)) + bias.shape,
    )
    return combine(flow.units, [out, rows], f"{call.where}: {FIXED}")


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
    if not flow.parameter(right) and len(b.shape) > 2:
        _mark_heads(flow, out)
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
    _mark_heads(flow, scores)
    if mask is not None:
        seen = flow.of(mask)
        seen = move(
            seen,
            [d + rank - len(seen.shape) for d in range(len(seen.shape))],
            (1,) * (rank - len(seen.shape)) + seen.shape,
        )
        scores = combine(flow.units, [scores, seen], f"{call.where}: {FIXED}")
    out = contract(flow, call, [(scores, [*batch, rank - 2, rank]), (value, [*batch, rank, rank - 1])], rank)
    return out


def einsum(flow: Flow, call: Call) -> Labelled | None:
    """Sums of products by letters; with dots or a letter twice in one operand everything stays whole."""
    operands = [flow.of(x) for x in call["tensors"]]
    before, _, after = call["equation"].replace(" ", "").partition("->")
    terms = before.split(",")
    if "." in before or not after or any(len(set(term)) < len(term) for term in (*terms, after)):
        for x in operands:
            drop(
                flow.units, x, range(len(x.shape)), f"{call.where}: {call['equation']!r} has dots or repeats"
            )
        return None
    places = {letter: place for place, letter in enumerate([*after, *sorted(set(before) - {*after, ","})])}
    if not any(flow.parameter(x) for x in call["tensors"]):
        summed = [[dim for dim, letter in enumerate(term) if letter not in after] for term in terms]
        for number, dims in enumerate(summed):
            for dim in dims:
                operands[number] = _keep_width(flow, call, operands[number], dim)
    out = contract(
        flow,
        call,
        [(x, [places[letter] for letter in term]) for x, term in zip(operands, terms, strict=True)],
        len(after),
    )
    shared = {place for letter, place in places.items() if all(letter in term for term in terms)}
    for factor in out.factors:
        if (
            len(terms) > 1
            and set(factor.dims) <= shared
            and not any(flow.parameter(x) for x in call["tensors"])
        ):
            flow.units.mark(factor.ids, "heads")
    return out


def embedding(flow: Flow, call: Call) -> Labelled:
    """[vocabulary, width] looked up by numbers of any shape."""
    flow.role(call["weight"], "in", "out")
    produces(flow, flow.of(call["weight"]), 1, "linear")
    weight = drop(flow.units, flow.of(call["weight"]), [0], f"{call.where}: vocabulary or positions")
    numbers = flow.of(call["indices"])
    drop(flow.units, numbers, range(len(numbers.shape)), f"{call.where}: used as numbers of rows")
    return move(weight, [None, call.out.ndim - 1], tuple(call.out.shape))


def biased(flow: Flow, call: Call, out: Labelled, bias: object, dim: int) -> Labelled:
    """``out`` plus a vector along ``dim``, or as it is where there is none."""
    if bias is None:
        return out
    added = along(flow.of(bias), dim, len(out.shape))  # type: ignore[arg-type]
    return combine(flow.units, [out, added], f"{call.where}: {FIXED}")


def along(vector: Labelled, dim: int, rank: int) -> Labelled:
    """A vector as it broadcasts along ``dim``."""
    shape = [1] * rank
    shape[dim] = vector.shape[0]
    return move(vector, [dim], shape)


def _keep_width(flow: Flow, call: Call, x: Labelled, dim: int) -> Labelled:
    factor = x.at(dim)
    if factor is None or len(factor.dims) > 1:
        return x
    return drop(flow.units, x, [dim], f"{call.where}: the width of a head scales the product")


def produces(flow: Flow, weight: Labelled, dim: int, layer: str) -> None:
    """This kind of layer writes to what ``dim`` of its weight counts."""
    factor = weight.at(dim)
    if factor:
        flow.units.mark(factor.ids, layer)


def _mark_heads(flow: Flow, product: Labelled) -> None:
    """Where activations are multiplied with each other, what numbers the products numbers heads."""
    for factor in product.factors:
        if max(factor.dims) < len(product.shape) - 2:
            flow.units.mark(factor.ids, "heads")


def _repeated(x: Labelled, dim: int, times: int) -> Labelled:
    """Every position ``times`` in a row; a single one serves any number of query heads as it is."""
    if x.shape[dim] == 1:
        return x
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


RULES: dict[str, Rule] = {
    "linear": linear,
    "addmm": addmm,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), matmul),
    "scaled_dot_product_attention": attention,
    "einsum": einsum,
    "embedding": embedding,
}
