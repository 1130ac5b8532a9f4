"""Flat shares and shards of rows are two cuts of one line; going from one to the other loses nothing."""

import pytest
import torch
from forgepress.parallel.intervals import Exchange, equal_intervals, overlap, row_intervals
from forgepress.tests.ranks import run_on_ranks

SHAPES = {"matrix": (7, 5), "vector": (4,), "kernel": (3, 2, 2, 2), "few": (2, 3)}


@pytest.mark.parametrize("shape", SHAPES.values())
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_rows_lie_where_torch_puts_them(shape: tuple[int, ...], ranks: int) -> None:
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    pieces = [*torch.chunk(numbers, ranks)]
    pieces += [numbers[:0]] * (ranks - len(pieces))
    for (start, end), piece in zip(row_intervals(shape, ranks), pieces, strict=True):
        assert numbers.view(-1)[start:end].tolist() == piece.flatten().tolist()


def test_equal_shares_end_with_the_parameter() -> None:
    assert equal_intervals(10, 4, 4) == [(0, 4), (4, 8), (8, 10), (10, 10)]
    assert overlap((0, 4), (3, 8)) == (3, 4)
    assert overlap((0, 4), (4, 8)) == (0, 0)


def there_and_back() -> None:
    import torch.distributed as dist

    rank, ranks = dist.get_rank(), dist.get_world_size()
    sizes = {name: torch.Size(shape).numel() for name, shape in SHAPES.items()}
    flat = {name: equal_intervals(size, -(-size // ranks), ranks) for name, size in sizes.items()}
    flat["vector"] = [(0, 0), (0, 4), (4, 4)]  # all of it on one rank, as in ZeRO-1 and -2
    rows = {name: row_intervals(shape, ranks) for name, shape in SHAPES.items()}
    place = {"rank": rank, "group": dist.group.WORLD, "device": torch.device("cpu")}
    to_rows, to_flat = Exchange(flat, rows, **place), Exchange(rows, flat, **place)
    whole = {name: torch.arange(float(size)) for name, size in sizes.items()}
    held = {name: whole[name][slice(*flat[name][rank])].clone() for name in SHAPES}
    into = {name: torch.full((rows[name][rank][1] - rows[name][rank][0],), -1.0) for name in SHAPES}
    to_rows.move(held, into)
    for name in SHAPES:
        assert into[name].tolist() == whole[name][slice(*rows[name][rank])].tolist()
    back = {name: torch.full_like(tensor, -1.0) for name, tensor in held.items()}
    to_flat.move(into, back)
    assert all(torch.equal(back[name], held[name]) for name in SHAPES)


def test_what_goes_to_rows_and_back_is_what_was_there() -> None:
    run_on_ranks(there_and_back, ranks=3)  # 3 divides none of the shapes' rows but one
