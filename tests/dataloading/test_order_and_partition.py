"""The order is a permutation that knows no mesh; the cut gives micro-batches first, then ranks."""

import numpy as np
import pytest
from forgepress.dataloading.order import epoch_order
from forgepress.dataloading.partition import cut, full_sizes, part_of
from forgepress.dataloading.split import split_rows


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 64, 65, 1000])
def test_every_epoch_is_a_permutation(rows):
    for epoch in range(4):
        assert np.array_equal(np.sort(epoch_order(rows, seed=5, epoch=epoch)), np.arange(rows))


def test_epochs_and_seeds_differ_and_repeat_themselves():
    orders = {(s, e): tuple(epoch_order(101, seed=s, epoch=e)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert orders[1, 2] == tuple(epoch_order(101, seed=1, epoch=2))


def test_the_order_is_the_one_of_earlier_versions():
    # A resumed run relies on these numbers: they may never change.
    assert epoch_order(10, seed=0, epoch=0).tolist() == [7, 5, 1, 0, 3, 2, 8, 4, 9, 6]
    assert epoch_order(10, seed=7, epoch=3).tolist() == [8, 5, 4, 2, 3, 0, 9, 6, 7, 1]


def test_every_place_is_equally_likely_for_every_row():
    counts = np.zeros((7, 7))
    for epoch in range(3500):
        counts[np.arange(7), epoch_order(7, seed=1, epoch=epoch)] += 1
    # chi-square with 36 degrees of freedom: beyond 68 once in 1000 seeds; this seed is fixed
    assert ((counts - 500) ** 2 / 500).sum() < 68


def test_without_shuffle_rows_come_as_they_lie():
    assert epoch_order(5, seed=3, epoch=9, shuffle=False).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("rows", "pieces"), [(10, 4), (3, 8), (0, 3), (12, 3), (17, 5)])
def test_the_cut_is_that_of_array_split(rows, pieces):
    expected = [len(piece) for piece in np.array_split(np.arange(rows), pieces)]
    assert [end - begin for begin, end in cut(rows, pieces)] == expected


@pytest.mark.parametrize("rows", [0, 1, 5, 13, 16, 31])
@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_micro_batch_is_the_same_set_of_rows_on_every_mesh(rows, microbatches, ranks):
    parts = [part_of(rows, microbatches=microbatches, ranks=ranks, rank=r).positions for r in range(ranks)]
    for number, whole in enumerate(np.array_split(np.arange(rows), microbatches)):
        # what an engine sees: tensor_split of its own rows is where micro-batches begin and end
        pieces = [np.array_split(part, microbatches)[number] for part in parts]
        assert np.array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("real", [1, 2, 5, 13, 14])
def test_padding_makes_equal_shapes_and_marks_every_copy(real):
    batch, microbatches, ranks = 14, 2, 3
    kept = []
    for rank in range(ranks):
        sizes = full_sizes(batch, microbatches=microbatches, ranks=ranks, rank=rank, equal=True)
        part = part_of(real, microbatches=microbatches, ranks=ranks, rank=rank, sizes=sizes)
        assert sizes == (3, 3)  # ceil(14 / 6)
        assert len(part.positions) == 6
        assert part.positions.max() < real
        valid = np.ones(6, bool) if part.valid is None else part.valid.numpy()
        kept += part.positions[valid].tolist()
    assert sorted(kept) == list(range(real))


def test_a_row_keeps_its_split_when_rows_are_added():
    few, many = split_rows(300, 0.2, "test"), split_rows(1000, 0.2, "test")
    assert np.array_equal(many[many < 300], few)
    assert sorted([*many, *split_rows(1000, 0.2, "train")]) == list(range(1000))
    assert 150 < len(many) < 250
