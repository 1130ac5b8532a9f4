"""Where ranks have pieces of rows, what they find adds up to what is found in whole rows, padding left out."""

import pytest
import torch
from forgepress.compression import Run
from forgepress.compression.distillation._layers import mean_over_places, real_places
from forgepress.compression.distillation._losses import relation_divergence
from forgepress.compression.run import Now, Piece
from forgepress.errors import ConfigError
from forgepress.parallel.places import places_of

ROWS, TOKENS, PIECES = 3, 8, 2
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6])  # one row is padding in the second piece


def run(index: int = 0, pieces: int = 1, *, masked: bool) -> Run:
    now = Now()
    now.columns = {"attention_mask": MASK} if masked else {}
    now.valid = torch.tensor([True, True, False])
    return Run(
        [],
        steps=1,
        now=now,
        piece=Piece(pieces=pieces, places=lambda length: places_of(index, pieces, length)),
    )


def _cut(x: torch.Tensor) -> list[torch.Tensor]:
    return [x.index_select(1, places_of(index, PIECES, TOKENS // PIECES)) for index in range(PIECES)]


@pytest.mark.parametrize("masked", [True, False])
def test_the_shares_of_pieces_add_up_to_the_mean_of_a_row(masked: bool) -> None:
    each = torch.randn(ROWS, TOKENS)
    shares = [
        mean_over_places(run(index, PIECES, masked=masked), piece) for index, piece in enumerate(_cut(each))
    ]
    torch.testing.assert_close(sum(shares), mean_over_places(run(masked=masked), each))


@pytest.mark.parametrize("masked", [True, False])
def test_the_relations_of_a_pieces_places_are_those_of_the_whole_row(masked: bool) -> None:
    teacher, student = torch.randn(ROWS, TOKENS, 12), torch.randn(ROWS, TOKENS, 6)
    wholes = {12: teacher, 6: student}
    whole = relation_divergence(teacher, student, 2, real_places(run(masked=masked), (ROWS, TOKENS)))
    for index in range(PIECES):
        pieces = [_cut(x)[index] for x in (teacher, student)]
        real = real_places(run(index, PIECES, masked=masked), (ROWS, TOKENS // PIECES))
        found = relation_divergence(*pieces, 2, real, lambda x: wholes[x.shape[-1]])
        torch.testing.assert_close(found, _cut(whole)[index])


def test_one_vector_for_a_row_has_no_pieces() -> None:
    with pytest.raises(ConfigError, match="one vector for a row"):
        mean_over_places(run(0, PIECES, masked=False), torch.randn(ROWS))
