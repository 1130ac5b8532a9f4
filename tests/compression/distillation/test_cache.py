"""The row cache: the bits that were written, from any number of writers, also after one was killed."""

import numpy as np
import torch
from forgepress.compression.distillation._cache import RowCache


def values(rows: torch.Tensor) -> torch.Tensor:
    """A value for each row that no other row has."""
    return (rows[:, None, None] * 7 + torch.arange(6).view(2, 3)).int()


def filled(folder, parts: list[list[int]], rows: int = 17) -> RowCache:
    for index, part in enumerate(parts):
        cache = RowCache(folder, rows, writer=f"rank-{index}")
        for piece in torch.tensor(part).split(2):
            cache.write(piece, values(piece))
        cache.close()
    cache = RowCache(folder, rows, writer="reader")
    cache.scan()
    return cache


def test_rows_of_several_writers_come_back_in_any_order(tmp_path):
    cache = filled(tmp_path, [[3, 1, 16], [], [8, 3, 0]])
    asked = torch.tensor([0, 3, 16, 3, 8])
    assert cache.known == 5 and not cache.complete
    assert cache.holds(asked) and not cache.holds(torch.tensor([0, 2]))
    assert torch.equal(cache.read(asked), values(asked))


def test_merged_it_is_one_file_with_the_same_bits(tmp_path):
    order = np.random.default_rng(0).permutation(17).tolist()
    cache = filled(tmp_path, [order[:4], order[4:5], order[5:]])
    assert cache.complete
    cache.merge()
    later = RowCache(tmp_path, 17, writer="later")
    later.scan()
    assert later.complete and torch.equal(later.read(torch.arange(17)), values(torch.arange(17)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.data", "all.json"]
    cache.scan()
    assert torch.equal(cache.read(torch.tensor([5, 5, 2])), values(torch.tensor([5, 5, 2])))


def test_what_a_killed_writer_left_half_written_does_not_count(tmp_path):
    filled(tmp_path, [[4, 2, 9]])
    for kind, cut in (("data", 5), ("rows", 3)):
        path = tmp_path / f"rank-0.{kind}"
        whole = path.read_bytes()
        path.write_bytes(whole[:-cut])
        cache = filled(tmp_path, [[], [1]])
        assert cache.known == 3 and not cache.holds(torch.tensor([9]))
        assert torch.equal(cache.read(torch.tensor([2, 1, 4])), values(torch.tensor([2, 1, 4])))
        path.write_bytes(whole)


def test_no_rows_are_no_trouble(tmp_path):
    cache = RowCache(tmp_path / "nothing", 3, writer="a")
    cache.write(torch.empty(0, dtype=torch.int64), torch.empty(0, 4))
    cache.scan()
    assert cache.known == 0 and cache.holds(torch.empty(0, dtype=torch.int64))
