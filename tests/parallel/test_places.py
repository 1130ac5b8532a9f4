"""Pieces of sequences: nothing is lost, and each has as much to do."""

import pytest
import torch
from forgepress.parallel.places import by_piece, in_order, places_of


@pytest.mark.parametrize(("pieces", "length"), [(1, 4), (2, 6), (4, 2), (3, 5), (8, 16)])
def test_pieces_put_in_order_are_the_sequence(pieces: int, length: int) -> None:
    whole = torch.arange(pieces * length).view(1, -1, 1)
    found = [whole.index_select(1, places_of(index, pieces, length)) for index in range(pieces)]
    assert torch.equal(in_order(found), whole)
    assert torch.equal(by_piece(whole, pieces), torch.stack(found))
    assert all((piece.diff(dim=1) > 0).all() for piece in found)  # causal kernels count on that


def test_under_a_causal_mask_all_pieces_have_the_same_work() -> None:
    work = {int((places_of(index, 4, 32) + 1).sum()) for index in range(4)}
    assert len(work) == 1
