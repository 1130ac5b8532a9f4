"""With a compiler and without: the same bits, and nothing outside the memory that was given."""

import numpy as np
import pytest
import torch
from forgepress.c_functions import compiled
from forgepress.dataloading import bijection, mapped, marks, native, packing
from forgepress.dataloading.bijection import Permutation
from forgepress.dataloading.mapped import Ragged, copy_runs, take_rows
from forgepress.dataloading.packing import Pieces
from hypothesis import given, settings
from hypothesis import strategies as st

if native.library() is None:
    pytest.skip("no C compiler here", allow_module_level=True)

drawn = settings(max_examples=40, deadline=None, derandomize=True)
KINDS = st.sampled_from([torch.uint8, torch.int16, torch.float32, torch.int64])


def without(function, *given_):
    """What `function` gives where there is no compiler."""
    found, native.library = native.library, lambda: None
    try:
        return function(*given_)
    finally:
        native.library = found


def fresh(shape, dtype):
    return torch.empty(shape, dtype=dtype)


@drawn
@given(st.integers(1, 50), st.integers(0, 40), st.integers(0, 90), KINDS)
def test_rows_are_those_of_index_select(rows, width, count, kind):
    whole = torch.randint(0, 100, (rows, width)).to(kind)
    chosen = np.random.default_rng(rows).integers(0, rows, count)
    found = take_rows(whole, chosen, fresh((count, width), kind))
    assert torch.equal(found, whole[torch.from_numpy(chosen)])


def test_a_row_that_is_not_there_is_an_error_and_nothing_is_read():
    whole = torch.arange(10)
    for wrong in (-1, 10, 2**40):
        with pytest.raises(IndexError, match=f"row {wrong} of 10"):
            take_rows(whole, np.array([0, wrong]), torch.empty(2, dtype=torch.int64))
    lists = Ragged([(whole.data_ptr(), np.array([0, 4, 10]))], torch.int64, whole)
    with pytest.raises(IndexError):
        lists.padded(np.array([2]), 3, 0, fresh)
    one = np.array([1])
    for begin, length, place in ((9, 2, 0), (0, 2, 4)):
        with pytest.raises(IndexError, match="runs beyond"):
            copy_runs(whole, begin * one, length * one, place * one, torch.empty(5, dtype=torch.int64))


@drawn
@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(1, 40), KINDS)
def test_lists_are_padded_alike(lengths, width, kind):
    values = torch.randint(1, 100, (sum(lengths) + 1,)).to(kind)
    lists = Ragged([(values.data_ptr(), np.cumsum([0, *lengths]))], kind, values)
    rows = np.random.default_rng(width).integers(0, len(lengths), 20)
    found = lists.padded(rows, width, 0, fresh)
    assert torch.equal(found, without(lists.padded, rows, width, 0, fresh))


@drawn
@given(st.lists(st.integers(0, 90), max_size=60), st.integers(1, 130))
def test_best_fit_makes_the_same_rows(lengths, length):
    given_ = np.array(lengths, np.int64)
    for one, other in zip(
        packing._best_fit(given_, length), without(packing._best_fit, given_, length), strict=True
    ):
        assert one.tolist() == other.tolist()


@drawn
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 40), st.integers(-2, 3))
def test_documents_are_marked_alike(lengths, length, padding):
    which, first, sizes, rows, places = packing._best_fit(np.array(lengths), length)
    pieces, count = Pieces(which, first, sizes, rows, places), int(rows[-1]) + 1
    made = []
    for run in (lambda function, *rest: function(*rest), without):
        tokens = torch.full((count, length), 9, dtype=torch.int16)
        document, position = (torch.full((count, length), 9, dtype=torch.int32) for _ in range(2))
        run(marks.mark_documents, pieces, padding, tokens, document, position)
        made.append(torch.stack([tokens.int(), document, position]))
    assert torch.equal(*made)


@drawn
@given(st.integers(1, 3000), st.integers(0, 99))
def test_the_arithmetic_permutation_is_the_same(size, seed):
    table, bijection.SORTED = bijection.SORTED, 0
    try:
        permutation = Permutation(size, (seed, 1))
        found = permutation(np.arange(size))
        assert np.array_equal(found, without(permutation, np.arange(size)))
    finally:
        bijection.SORTED = table
    with pytest.raises(IndexError, match="beyond"):
        native.permuted(np.array([size]), size, 2, np.zeros(8, np.uint32))


def test_it_is_compiled_once_and_does_without_where_it_cannot(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = compiled(native._SOURCE)
    time = made.stat().st_mtime_ns
    assert compiled(native._SOURCE) == made and made.stat().st_mtime_ns == time
    assert [file.name for file in (tmp_path / "forgepress").iterdir()] == [made.name]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no/such/place")
    native.library.cache_clear()
    assert native.library() is None
    assert mapped.native.library() is None
    monkeypatch.undo()
    native.library.cache_clear()
    assert native.library() is not None
    monkeypatch.setenv("FORGEPRESS_NATIVE", "0")
    native.library.cache_clear()
    assert native.library() is None
    monkeypatch.undo()
    native.library.cache_clear()
