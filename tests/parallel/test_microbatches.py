"""Micro-batch m over all data ranks is the same set of rows on every mesh."""

import pytest
import torch
from forgepress.parallel.microbatches import cut, row_counts


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize("rows", [3, 16, 17])
def test_counts_follow_the_cut_of_the_global_batch(rows: int, microbatches: int, ranks: int) -> None:
    for rank in range(ranks):
        want = [
            len(piece.tensor_split(ranks)[rank]) for piece in torch.arange(rows).tensor_split(microbatches)
        ]
        assert row_counts(sum(want), microbatches, global_rows=rows, rank=rank, ranks=ranks) == want


def test_padded_or_unknown_batches_are_cut_evenly() -> None:
    assert row_counts(8, 4, global_rows=13, rank=0, ranks=2) == [2, 2, 2, 2]
    assert row_counts(7, 3, global_rows=None, rank=0, ranks=2) == [3, 2, 2]


def test_pieces_are_views_in_order() -> None:
    x, valid = torch.arange(10).view(5, 2), torch.tensor([True, True, False, True, True])
    first, second = cut({"x": x}, valid, [2, 3])
    assert first.valid is not None and second.valid is not None
    assert torch.equal(torch.cat([first.columns["x"], second.columns["x"]]), x)
    assert second.valid.tolist() == [False, True, True]
    assert first.columns["x"].data_ptr() == x.data_ptr()
