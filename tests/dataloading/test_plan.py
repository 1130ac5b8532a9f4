"""Order, mixing, bucketing and packing are functions of the position: every invariant on drawn examples."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from forgepress.dataloading import bijection
from forgepress.dataloading.bijection import Permutation
from forgepress.dataloading.lengths import BucketOrder, Buckets
from forgepress.dataloading.mixing import MixedOrder, schedule, shares_of
from forgepress.dataloading.order import BlockOrder, RowOrder
from forgepress.dataloading.packing import PackedOrder, Packing
from forgepress.errors import ConfigError
from hypothesis import given, settings
from hypothesis import strategies as st

settings.register_profile("plan", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("plan")


@given(st.integers(1, 3000), st.integers(0, 99), st.integers(0, 9))
def test_the_arithmetic_permutation_is_one_whatever_the_size(rows, seed, epoch):
    sorted_up_to, bijection.SORTED = bijection.SORTED, 0
    try:
        permutation = Permutation(rows, (seed, epoch))
        found = permutation(np.arange(rows))
        some = np.arange(rows)[:: max(rows // 7, 1)]
        assert np.array_equal(permutation(some), found[some])
    finally:
        bijection.SORTED = sorted_up_to
    assert np.array_equal(np.sort(found), np.arange(rows))


def test_rows_of_a_hundred_million_are_found_without_a_table_and_spread_evenly():
    rows = 100_000_000
    permutation = Permutation(rows, (3, 1))
    at = np.arange(50_000_000, 50_020_000)
    found = permutation(at)
    assert len(np.unique(found)) == len(at) and found.min() >= 0 and found.max() < rows
    counts = np.histogram(found, bins=20, range=(0, rows))[0]
    # chi-square with 19 degrees of freedom: beyond 44 once in 1000 draws; the draw is fixed
    assert ((counts - 1000) ** 2 / 1000).sum() < 44
    assert abs(np.corrcoef(at, found)[0, 1]) < 0.03
    # A resumed run relies on these numbers: they may never change.
    assert found[:4].tolist() == [4088388, 83882762, 31075807, 41421456]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 3))
def test_block_shuffle_gives_every_row_once_and_reads_a_window_of_blocks_at_a_time(sizes, window, epoch):
    edges = np.cumsum([0, *sizes])
    order = BlockOrder(edges, seed=2, window=window)
    rows = order.items(epoch, 0, np.arange(edges[-1]))
    assert np.array_equal(np.sort(rows), np.arange(edges[-1]))
    blocks = np.searchsorted(edges, rows, side="right") - 1
    first_seen = list(dict.fromkeys(blocks.tolist()))
    for number in range(0, len(sizes), window):  # each window's blocks are done before the next one's begin
        group = set(first_seen[number : number + window])
        at = np.flatnonzero([block in group for block in blocks])
        assert at[-1] - at[0] + 1 == sum(sizes[block] for block in group)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(1, 3000))
def test_shares_are_kept_within_one_row_at_every_prefix(weights, length):
    shares = shares_of(weights, len(weights))
    sources, ranks, parts = schedule(shares)
    assert sum(shares) == 1 and parts.sum() == len(sources)
    exact = [Fraction(weight, sum(weights)) for weight in weights]
    assert all(abs(one - other) < Fraction(1, 1000) for one, other in zip(shares, exact, strict=True))
    endless = np.resize(sources, length)
    for which, share in enumerate(shares):
        counts = np.cumsum(endless == which)
        target = float(share) * np.arange(1, length + 1)
        assert np.abs(counts - target).max() < 1
        assert np.array_equal(ranks[sources == which], np.arange(parts[which]))


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.integers(0, 200))
def test_every_source_of_a_mix_goes_through_its_own_passes(rows, begin):
    weights = list(range(1, len(rows) + 1))
    starts = np.cumsum([0, *rows])[:-1].tolist()
    orders = [RowOrder(count, seed=number, shuffle=True) for number, count in enumerate(rows)]
    mixed = MixedOrder(orders, starts, weights)
    size = sum(rows)
    stream = np.concatenate([mixed.items(epoch, 0, np.arange(size)) for epoch in range(4)])
    for start, count, order in zip(starts, rows, orders, strict=True):
        own = stream[(stream >= start) & (stream < start + count)] - start
        passes = [order.items(number, 0, np.arange(count)) for number in range(len(own) // count + 1)]
        assert np.array_equal(own, np.concatenate(passes)[: len(own)])
    at = begin % len(stream)
    assert mixed.items(at // size, 0, np.array([at % size])) == stream[at]


def test_changed_weights_count_from_where_they_changed():
    orders = [RowOrder(50, seed=0, shuffle=True), RowOrder(70, seed=1, shuffle=True)]
    before = MixedOrder(orders, [0, 50], [1, 1])
    state, at = before.state(0, 33), 33
    after = MixedOrder(orders, [0, 50], [1, 9]).resumed(state, 0, at)
    head, tail = before.items(0, 0, np.arange(at)), after.items(0, 0, np.arange(at, 120))
    stream = np.concatenate([head, tail])
    first = stream[stream < 50]
    assert np.array_equal(
        first, orders[0].items(0, 0, np.arange(len(first)))
    )  # nothing repeated, nothing skipped
    assert abs((tail < 50).sum() - 8.7) < 1
    again = MixedOrder(orders, [0, 50], [1, 9]).resumed(after.state(0, 90), 0, 90)
    assert np.array_equal(again.items(0, 0, np.arange(90, 120)), tail[57:])
    with pytest.raises(ConfigError, match="one positive number for each"):
        MixedOrder(orders, [0, 50], [1, -1])


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 9), st.integers(0, 2))
def test_bucketing_gives_every_row_once_and_runs_of_like_length(rows, window, run, epoch):
    lengths = np.random.default_rng(rows).integers(0, 50, rows)
    order = BucketOrder(
        RowOrder(rows, seed=1, shuffle=True), lengths, Buckets(window=window, run=run), seed=1
    )
    found = order.items(epoch, 0, np.arange(rows))
    assert np.array_equal(np.sort(found), np.arange(rows))
    for begin in range(0, rows, window):
        inside = lengths[found[begin : begin + window]]
        runs = [inside[at : at + run] for at in range(0, len(inside) // run * run, run)]
        ordered = sorted(runs, key=lambda one: (one[0], one[-1]))
        assert all(one[-1] <= other[0] for one, other in pairwise(ordered))


@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=60),
    st.integers(1, 33),
    st.integers(1, 25),
    st.sampled_from(["long", "any"]),
)
def test_packing_loses_and_splits_no_token_that_it_need_not(lengths, length, window, split):
    documents = np.array(lengths)
    order = PackedOrder(
        RowOrder(len(documents), seed=5, shuffle=True),
        documents,
        Packing(length=length, window=window, split=split),
    )
    seen: list[tuple[int, int]] = []
    for number in range(order.windows(0)):
        rows = order.count(0, number)
        pieces = order.pieces(0, order.items(0, number, np.arange(rows)))
        used = np.zeros((rows, length), int)
        for document, first, size, row, place in zip(*vars(pieces).values(), strict=True):
            assert size > 0 and place + size <= length
            used[row, place : place + size] += 1
            seen += [(int(document), token) for token in range(first, first + size)]
            if split == "long" and documents[document] <= length:
                assert (first, size) == (0, documents[document])
        assert used.max(initial=0) <= 1
        if split == "any" and rows:
            assert used.ravel()[: used.sum()].all()  # filled to the last token
    assert sorted(seen) == [(row, token) for row, size in enumerate(lengths) for token in range(size)]
