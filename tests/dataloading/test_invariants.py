"""One order whatever ranks, threads, mode, depth and batch size; cut anywhere, nothing is repeated and nothing lost."""

import json
import time
from functools import cache
from itertools import chain, islice

import numpy as np
import pytest
import torch
from forgepress.dataloading import ArraySource, Buckets, Cache, Loader, Packing
from forgepress.errors import DataError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

datasets = pytest.importorskip("datasets")

ROWS = 61
cheap = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Read(ArraySource):
    """Read by threads although it lies in memory."""

    resident = False


def numbers() -> Read:
    return Read({"number": torch.arange(ROWS)})


@cache
def documents():
    """A table of 61 lists of 1 to 39 numbers: row and place can be read off each."""
    lengths = np.random.default_rng(1).integers(1, 40, ROWS)
    rows = [[1000 * row + at + 1 for at in range(size)] for row, size in enumerate(lengths)]
    return datasets.Dataset.from_dict({"tokens": rows})


KINDS = {
    "rows": lambda: (numbers(), {}),
    "in order": lambda: (numbers(), {"shuffle": False}),
    "blocks": lambda: (numbers(), {"shuffle": 2}),
    "mixed": lambda: ([numbers(), Read({"number": torch.arange(1000, 1013)})], {"weights": [0.7, 0.3]}),
    "buckets": lambda: (documents(), {"buckets": Buckets(window=20, run=4)}),
    "packed": lambda: (documents(), {"pack": Packing(length=32, window=16)}),
    "cut": lambda: (documents(), {"pack": Packing(length=32, window=16, split="any")}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def batches(kind: str, count: int, *, ranks: int = 1, state=None, **settings):
    """Global batches as lists of rows (column values as tuples), and the state after the last."""
    parts, states = [], []
    for rank in range(ranks):
        source, given_ = KINDS[kind]()
        loader = Loader(source, rank=rank, ranks=ranks, seed=3, **{"batch": 8, **given_, **settings})
        if state is not None:
            loader.load_state_dict(json.loads(json.dumps(state)))
        parts.append([_rows(batch) for batch in islice(loader.stream(), count)])
        states.append(loader.state_dict())
        loader.close()
    assert all(one == states[0] for one in states)
    return [list(chain(*pieces)) for pieces in zip(*parts, strict=True)], states[0]


def _rows(batch) -> list:
    columns = batch.columns.values()
    valid = torch.ones(len(batch.rows), dtype=torch.bool) if batch.valid is None else batch.valid
    flat = [column[valid].tolist() for column in columns]
    return list(zip(*flat, strict=True))


@kinds
@cheap
@given(st.sampled_from([2, 3, 4, 8]), st.sampled_from([1, 2, 4]), st.integers(0, 5))
def test_global_batches_are_bit_equal_on_every_mesh_with_any_threads_and_depth(kind, ranks, threads, depth):
    wanted, _ = batches(kind, 12, prefetch=0)
    assert batches(kind, 12, ranks=ranks, threads=threads, prefetch=depth)[0] == wanted


class Late(Read):
    """Some rows come long after others that were asked for later."""

    def gather(self, rows, make=None):
        time.sleep(0.02 * bool(len(rows) and rows[0] % 5 == 0))
        return super().gather(rows)


def test_a_slow_row_changes_no_order():
    wanted, _ = batches("rows", 160, prefetch=0)
    with Loader(Late({"number": torch.arange(ROWS)}), batch=8, seed=3, threads=4, prefetch=6) as loader:
        assert [_rows(batch) for batch in islice(loader.stream(), 160)] == wanted


@cheap
@given(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["thread", "auto"]), st.sampled_from([1, 3]))
def test_what_is_kept_changes_no_batch_on_any_mesh(share, mode, ranks):
    wanted, _ = batches("rows", 12, prefetch=0)
    kept = Cache(memory=int(share * ROWS * 8)) if share else None
    assert batches("rows", 12, ranks=ranks, cache=kept, mode=mode, prefetch=2)[0] == wanted


def test_the_first_batch_after_a_resume_asks_for_its_own_rows_alone():
    asked = []

    class Endless(Read):
        def __len__(self):
            return 10**12

        def gather(self, rows, make=None):
            asked.append(rows)
            return super().gather(rows % ROWS)

    state = Loader(Endless({"number": torch.arange(ROWS)}), batch=4).state_dict()
    loader = Loader(Endless({"number": torch.arange(ROWS)}), batch=4, prefetch=0)
    loader.load_state_dict({**state, "epoch": 7, "consumed": 999_999_999_000})
    batch = next(loader.stream())
    assert len(asked) == 1 and asked[0][:4].tolist() == batch.rows.tolist()
    assert len(asked[0]) <= 16 * 4  # no row before its place was looked at, whatever the place


@kinds
def test_cut_at_every_step_and_resumed_twice_on_other_meshes_it_is_one_stream(kind):
    wanted, _ = batches(kind, 20, prefetch=0)
    for step in range(0, 19):
        first, state = batches(kind, step, ranks=1 + step % 3, prefetch=step % 3)
        assert len(json.dumps(state)) < 1024
        second, state = batches(kind, 1, ranks=1 + step % 4, state=state, prefetch=1, threads=2)
        third, _ = batches(kind, 19 - step, ranks=1 + step % 2, state=state, prefetch=0, microbatches=1)
        assert first + second + third == wanted, f"cut after {step}"


@pytest.mark.parametrize("kind", ["rows", "blocks", "mixed", "buckets", "cut"])
@cheap
@given(st.integers(0, 9), st.integers(1, 13))
def test_another_batch_size_deals_on_from_the_same_row(kind, step, batch):
    wanted = list(chain(*batches(kind, 30, prefetch=0)[0]))
    first, state = batches(kind, step, prefetch=0)
    then, _ = batches(kind, 6, state=state, batch=batch, prefetch=0)
    found = list(chain(*first, *then))
    if kind == "buckets":  # batches of other rows are as wide as others
        found, wanted = ([[n for n in row[0] if n] for row in rows] for rows in (found, wanted))
    assert found == wanted[: len(found)]


@pytest.mark.parametrize("kind", ["rows", "blocks", "buckets"])
def test_every_epoch_holds_every_row_once_and_epochs_differ(kind):
    source, given_ = KINDS[kind]()
    loader = Loader(source, batch=7, **given_)
    epochs = [[row for batch in loader for row in batch.rows.tolist()] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(ROWS))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    loader.close()


@pytest.mark.parametrize("split", ["long", "any"])
def test_packed_batches_hold_every_token_with_its_document_and_position(split):
    lengths = [len(row) for row in documents()["tokens"]]
    packing = Packing(length=24, window=16, split=split, padding=-1)
    with Loader(documents(), batch=3, pack=packing, microbatches=1) as loader:
        assert len(loader) == len(list(loader))
        seen = []
        for batch in loader:
            tokens, document, position = (batch.columns[name] for name in ("tokens", "document", "position"))
            assert ((tokens == -1) == (document == 0)).all() and (position[document == 0] == 0).all()
            real = document > 0
            seen += tokens[real].tolist()
            assert (tokens % 1000 == position + 1)[real].all()
            # Where the document's number goes up by one a new document begins, and nowhere else.
            rises = (document[:, 1:] - document[:, :-1])[real[:, 1:]]
            same = (tokens[:, 1:] // 1000 == tokens[:, :-1] // 1000)[real[:, 1:]]
            assert set(rises.tolist()) <= {0, 1} and ((rises == 0) == same).all()
    assert sorted(seen) == [1000 * row + at + 1 for row, size in enumerate(lengths) for at in range(size)]


def test_a_batch_of_lists_is_as_wide_as_the_longest_of_the_global_batch():
    lengths = np.array([len(row) for row in documents()["tokens"]])
    parts = [list(Loader(documents(), batch=10, rank=rank, ranks=2)) for rank in range(2)]
    for left, right in zip(*parts, strict=True):
        longest = lengths[torch.cat([left.rows, right.rows]).numpy()].max()
        for batch in (left, right):
            assert batch.columns["tokens"].shape[1] == longest
            for row, tokens in zip(batch.rows.tolist(), batch.columns["tokens"].tolist(), strict=True):
                own = [1000 * row + at + 1 for at in range(lengths[row])]
                assert tokens == own + [0] * (longest - len(own))


def test_wrapped_batches_are_full_on_every_rank_and_the_next_epoch_is_whole():
    loader = Loader(numbers(), batch=16, tail="wrap", shuffle=False)
    sizes = [batch.rows.tolist() for batch in loader]
    assert [len(rows) for rows in sizes] == [16] * 4
    assert sizes[-1] == [*range(48, 61), 0, 1, 2]
    assert next(iter(loader)).rows.tolist() == list(range(16))


def test_new_weights_go_on_where_each_source_was():
    sources, _ = KINDS["mixed"]()
    first = Loader(sources, batch=10, weights=[1, 1], shuffle=False)
    head = [row for batch in islice(first.stream(), 2) for row in batch.columns["number"].tolist()]
    then = Loader(sources, batch=10, weights=[9, 1], shuffle=False)
    then.load_state_dict(first.state_dict())
    tail = next(then.stream()).columns["number"].tolist()
    assert [row for row in head + tail if row < 1000] == list(range(19))
    assert [row for row in head + tail if row >= 1000] == [*range(1000, 1011)]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"buckets": Buckets(window=10, run=4)}, "order"), ({"buckets": None}, "order"), ({"seed": 4}, "seed")],
)
def test_another_order_is_refused_by_name(change, words):
    given_ = {"batch": 8, "seed": 3, "buckets": Buckets(window=20, run=4)}
    state = Loader(documents(), **given_).state_dict()
    with pytest.raises(DataError, match=f"loader state has {words}"):
        Loader(documents(), **{**given_, **change}).load_state_dict(state)


def test_a_state_of_the_first_version_goes_on():
    loader = Loader(numbers(), batch=8, seed=3)
    list(islice(loader.stream(), 3))
    state = loader.state_dict()
    old = {key: state[key] for key in ("fingerprint", "rows", "seed", "shuffle", "epoch", "consumed")}
    other = Loader(numbers(), batch=8, seed=3)
    other.load_state_dict({**old, "version": 1})
    assert torch.equal(next(other.stream()).rows, next(loader.stream()).rows)


def test_a_kept_batch_is_never_written_again():
    source = Read({"number": torch.arange(4000)[:, None].expand(4000, 64).contiguous()})
    read = 8 * 500 * 64 * 8  # bytes of the batches of one read
    loader = Loader(source, batch=500, prefetch=2, budget=4 * read)
    kept = [batch for batch in islice(loader.stream(), 24)]
    assert all((batch.columns["number"] == batch.rows[:, None]).all() for batch in kept)
    del kept
    for batch in islice(loader.stream(), 400):
        assert (batch.columns["number"] == batch.rows[:, None]).all()
        batch.columns["number"].fill_(-1)  # ours to write
    assert loader._maker.buffers.bytes <= 16 * read  # of 53 reads: memory that was let go is used again
    loader.close()
