"""The loader's promises: one order on every mesh, exact resume, no thread left behind."""

import json
import time
from itertools import chain, islice

import numpy as np
import pytest
import torch
from forgepress.dataloading import ArraySource, Batch, Loader, Source
from forgepress.errors import ConfigError, DataError


def rows_of(batches) -> list[list[int]]:
    """Real rows of each batch."""
    return [
        (b.columns["number"] if b.valid is None else b.columns["number"][b.valid]).tolist() for b in batches
    ]


def flat(lists) -> list[int]:
    return list(chain.from_iterable(lists))


def globally(source, *, ranks, microbatches=1, position=None, count=None, **settings):
    """Global batches put together from all ranks: {column: tensor in global order} and the ranks' states."""
    loaders = [
        Loader(source, rank=rank, ranks=ranks, microbatches=microbatches, **settings) for rank in range(ranks)
    ]
    if position is not None:
        for loader in loaders:
            loader.load_state_dict(position)
    parts = [
        list(islice(loader.stream(), count)) if count is not None else list(loader) for loader in loaders
    ]
    states = [loader.state_dict() for loader in loaders]
    for loader in loaders:
        loader.close()
    assert all(len(part) == len(parts[0]) for part in parts)
    whole = []
    for same in zip(*parts, strict=True):
        pieces = [[t.tensor_split(microbatches) for t in b.columns.values()] for b in same]
        whole.append(
            [
                torch.cat([piece[column][m] for m in range(microbatches) for piece in pieces])
                for column in range(len(pieces[0]))
            ]
        )
        assert all(b.global_rows == len(whole[-1][0]) for b in same)
    return whole, states


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_global_batches_are_the_same_bits_on_every_mesh(numbered, slow, ranks, microbatches, threaded):
    source = slow(numbered(101)) if threaded else numbered(101)
    expected, _ = globally(numbered(101), ranks=1, batch=33, seed=4)
    found, _ = globally(source, ranks=ranks, microbatches=microbatches, batch=33, seed=4)
    assert len(found) == len(expected) == 4  # 33, 33, 33 and 2 rows: some ranks have none of the last
    for left, right in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("threaded", [False, True])
def test_every_epoch_is_a_permutation_and_epochs_differ(numbered, slow, threaded, prefetch):
    source = slow(numbered(23)) if threaded else numbered(23)
    loader = Loader(source, batch=5, prefetch=prefetch)
    assert loader.threaded == (threaded and prefetch > 0)
    epochs = [flat(rows_of(loader)) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(23))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    loader.close()


def test_batches_say_where_they_are(numbered):
    loader = Loader(numbered(7), batch=3)
    found = [(b.epoch, b.index, b.global_rows) for b in islice(loader.stream(), 5)]
    assert found == [(0, 0, 3), (0, 1, 3), (0, 2, 1), (1, 0, 3), (1, 1, 3)]
    assert len(loader) == 3


@pytest.mark.parametrize("threaded", [False, True])
def test_batches_say_which_rows_of_the_source_they_hold(numbered, slow, threaded):
    source = slow(numbered(23)) if threaded else numbered(23)
    settings = {"batch": 7, "seed": 2, "ranks": 3, "microbatches": 2, "pad_rows": True}
    for rank in range(3):
        loader = Loader(source, rank=rank, **settings)
        batches = list(
            islice(loader.stream(), 9)
        )  # the last one of an epoch is short: padding rows are copies
        assert any(b.valid is not None for b in batches)
        assert all(torch.equal(b.rows, b.columns["number"]) for b in batches)
        assert all(b.rows.dtype == torch.int64 for b in batches)
        loader.close()


def test_the_stream_and_epochs_share_one_position(numbered):
    whole = rows_of(islice(Loader(numbered(11), batch=4).stream(), 6))
    loader = Loader(numbered(11), batch=4)
    found = rows_of(islice(loader.stream(), 2)) + rows_of(loader) + rows_of(loader)
    assert found == whole


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("tail", ["keep", "drop", "pad"])
def test_resume_at_every_step_on_another_mesh_repeats_and_loses_nothing(numbered, slow, tail, threaded):
    source = slow(numbered(26)) if threaded else numbered(26)
    settings = {"batch": 8, "seed": 3, "tail": tail}
    expected = rows_of(islice(Loader(numbered(26), **settings).stream(), 9))
    for step in range(9):  # before the first step, in the middle, at the end of an epoch, in later epochs
        first = Loader(source, rank=1, ranks=2, microbatches=2, **settings)
        list(islice(first.stream(), step))
        state = json.loads(json.dumps(first.state_dict()))
        first.close()
        found = []
        for rank in range(3):
            loader = Loader(source, rank=rank, ranks=3, prefetch=1, **settings)
            loader.load_state_dict(state)
            assert loader.state_dict() == state
            found.append(rows_of(islice(loader.stream(), 9 - step)))
            loader.close()
        assert [flat(parts) for parts in zip(*found, strict=True)] == expected[step:]


def test_resume_twice_in_a_row_is_one_run(numbered):
    source = numbered(101)
    expected, _ = globally(source, ranks=1, batch=16, seed=9, count=20)
    first, states = globally(source, ranks=4, batch=16, seed=9, count=5)
    second, states = globally(source, ranks=3, batch=16, seed=9, count=4, position=states[0], microbatches=4)
    third, _ = globally(source, ranks=2, batch=16, seed=9, count=11, position=states[2])
    for found, wanted in zip(first + second + third, expected, strict=True):
        assert torch.equal(found[0], wanted[0])


def test_a_state_at_the_end_of_an_epoch_gives_the_whole_next_epoch(numbered):
    loader = Loader(numbered(12), batch=4)
    for _ in loader:
        state = loader.state_dict()  # taken inside the loop, as a training loop does
    assert (state["epoch"], state["consumed"]) == (1, 0)
    resumed = Loader(numbered(12), batch=4)
    resumed.load_state_dict(state)
    assert rows_of(resumed) == rows_of(loader)
    assert resumed.epoch == 2


def test_state_counts_what_the_step_was_given_not_what_was_prefetched(numbered, slow):
    source = slow(numbered(400))
    loader = Loader(source, batch=4, prefetch=4)
    list(islice(loader.stream(), 3))
    deadline = time.monotonic() + 20
    while sum(map(len, source.asked)) <= 12 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sum(map(len, source.asked)) > 12
    assert loader.state_dict()["consumed"] == 12
    loader.close()


def test_state_is_small_json_and_equal_on_all_ranks(numbered):
    _, states = globally(numbered(50), ranks=3, batch=7, count=4)
    assert states[0] == states[1] == states[2]
    assert len(json.dumps(states[0])) < 1024


def test_a_loaded_state_counts_also_for_a_live_iterator(numbered):
    loader = Loader(numbered(20), batch=4)
    iterator = iter(loader)
    first = next(iterator)
    begin = Loader(numbered(20), batch=4).state_dict()
    loader.load_state_dict(begin)
    assert torch.equal(next(iterator).columns["number"], first.columns["number"])


def test_another_batch_size_deals_on_from_the_same_row(numbered):
    whole = flat(rows_of(Loader(numbered(30), batch=6)))
    loader = Loader(numbered(30), batch=6)
    list(islice(loader.stream(), 2))
    other = Loader(numbered(30), batch=5)
    other.load_state_dict(loader.state_dict())
    assert flat(rows_of(other)) == whole[12:]


def test_changed_data_are_refused_with_both_fingerprints(numbered):
    one, other = numbered(20), numbered(21)
    loader = Loader(other, batch=4)
    with pytest.raises(DataError) as raised:
        loader.load_state_dict(Loader(one, batch=4).state_dict())
    assert one.fingerprint in str(raised.value)
    assert other.fingerprint in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed"),
        ({"shuffle": False}, "shuffle"),
        ({"consumed": 21}, "consumed 21 of window 0"),
        ({"consumed": "3"}, "consumed"),
        ({"epoch": -1}, "epoch"),
        ({"version": 99}, "version"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(numbered, change, words):
    loader = Loader(numbered(20), batch=4)
    with pytest.raises(DataError, match=words):
        loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(DataError, match="lacks fingerprint"):
        loader.load_state_dict({k: v for k, v in loader.state_dict().items() if k != "fingerprint"})


@pytest.mark.parametrize(
    ("tail", "sizes", "reals"),
    [("keep", [5, 5, 2], [5, 5, 2]), ("drop", [5, 5], [5, 5]), ("pad", [5, 5, 5], [5, 5, 2])],
)
def test_tail_policies(numbered, tail, sizes, reals):
    batches = list(Loader(numbered(12), batch=5, tail=tail))
    assert [len(b.columns["number"]) for b in batches] == sizes
    assert [b.global_rows for b in batches] == reals
    assert [len(rows) for rows in rows_of(batches)] == reals
    assert len(Loader(numbered(12), batch=5, tail=tail)) == len(sizes)


def test_padded_micro_batches_all_have_one_shape_and_hold_every_row_once(numbered):
    source, seen, shapes = numbered(33), [], set()
    for rank in range(3):
        loader = Loader(source, batch=14, rank=rank, ranks=3, microbatches=2, pad_rows=True)
        for batch in loader:
            shapes |= {len(piece) for piece in batch.columns["number"].tensor_split(2)}
            seen += rows_of([batch])[0]
    assert shapes == {3}  # ceil(14 / 6), in the short last batch too
    assert sorted(seen) == list(range(33))


def test_a_rank_reads_its_own_rows_only(numbered, slow):
    source = slow(numbered(40))
    loader = Loader(source, batch=8, rank=1, ranks=4, prefetch=0, shuffle=False)
    rows = flat(rows_of(loader))
    assert np.concatenate(source.asked).tolist() == rows == [2, 3, 10, 11, 18, 19, 26, 27, 34, 35]


def test_handed_out_rows_are_copies(numbered):
    source = numbered(8)
    for batch in Loader(source, batch=4):
        batch.columns["number"].fill_(-1)
    assert source.tensors["number"].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch": 0}, "batch=0"),
        ({"batch": 4, "rank": 2, "ranks": 2}, "want 0 to 1"),
        ({"batch": 7, "ranks": 4, "microbatches": 2}, "at least 8"),
        ({"batch": 4, "tail": "turn"}, "keep, drop, pad or wrap"),
        ({"batch": 4, "seed": -1}, "seed=-1"),
        ({"batch": 4, "prefetch": -1}, "prefetch=-1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbered, given, words):
    with pytest.raises(ConfigError, match=words):
        Loader(numbered(20), **given)


def test_an_epoch_without_a_batch_is_refused(numbered):
    with pytest.raises(DataError, match="20 rows make no batch of 21"):
        Loader(numbered(20), batch=21, tail="drop")


def test_public_types_hold_their_protocol(numbered, slow):
    assert isinstance(numbered(3), Source)
    assert isinstance(slow(numbered(3)), Source)
    batch = next(iter(Loader(numbered(3), batch=2)))
    assert isinstance(batch, Batch)
    assert batch.columns["point"].shape == (2, 2, 3)


@pytest.mark.parametrize(
    "arrays", [{}, {"a": []}, {"a": [1, 2], "b": [1]}, {"a": ["x"]}, {"a": 3}, {"a": [[1], [1, 2]]}]
)
def test_arrays_that_are_no_rows_are_refused(arrays):
    with pytest.raises(DataError, match="want"):
        ArraySource(arrays)


def test_array_fingerprints_follow_bytes_types_and_names():
    base = ArraySource({"a": np.arange(6, dtype=np.int64)}).fingerprint
    assert ArraySource({"a": torch.arange(6)}).fingerprint == base
    assert ArraySource({"a": np.arange(6, dtype=">i8")}).fingerprint == base
    others = [{"b": np.arange(6)}, {"a": np.arange(6, dtype=np.int32)}, {"a": np.array([0, 1, 2, 3, 5, 4])}]
    assert len({base, *(ArraySource(other).fingerprint for other in others)}) == 4
