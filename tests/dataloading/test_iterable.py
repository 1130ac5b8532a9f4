"""Streams of `datasets` as rows by number: every row once, resumed anywhere, whatever ranks read them."""

from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from forgepress.dataloading import Loader, as_source
from forgepress.dataloading.iterable import IterableSource
from forgepress.dataloading.parquet import ParquetSource
from forgepress.errors import DataError

datasets = pytest.importorskip("datasets")


@pytest.fixture
def files(table_cache):
    """Three files of 20 rows in row groups of 6."""
    paths = []
    for number in range(3):
        rows = list(range(20 * number, 20 * number + 20))
        table = pa.table({"a": rows, "b": [[row / 4, 1.0] for row in rows]})
        paths.append(str(table_cache / f"part-{number}.parquet"))
        parquet.write_table(table, paths[-1], row_group_size=6)
    return paths


def stream(files):
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def doubled(row):
    return {"a": 2 * row["a"]}


def of_ranks(data, ranks: int, count: int, state=None):
    parts = []
    for rank in range(ranks):
        with Loader(data, batch=8, shuffle=3, rank=rank, ranks=ranks, seed=2) as loader:
            if state is not None:
                loader.load_state_dict(state)
            parts.append([batch.columns["a"].tolist() for batch in islice(loader.stream(), count)])
            after = loader.state_dict()
    return [list(chain(*pieces)) for pieces in zip(*parts, strict=True)], after


@pytest.mark.parametrize("changed", [False, True])
def test_every_row_of_a_stream_comes_once_and_a_cut_run_goes_on_elsewhere(files, changed):
    data = stream(files).map(doubled) if changed else stream(files)
    source = as_source(data)
    assert isinstance(source, IterableSource if changed else ParquetSource)
    assert len(source) == 60 and len(source.blocks) == 13
    whole, _ = of_ranks(source, 1, 16)
    factor = 2 if changed else 1
    assert sorted(chain(*whole[:8])) == [factor * row for row in range(60)]
    assert list(chain(*whole[:8])) != list(chain(*whole[8:]))
    first, state = of_ranks(source, 2, 5)
    assert first + of_ranks(as_source(data), 3, 11, state)[0] == whole


def test_rows_are_counted_once_and_changed_data_are_an_error(files):
    data = datasets.IterableDataset.from_generator(numbers, gen_kwargs={"parts": [3, 4, 0, 5]})
    source = as_source(data)
    assert source.blocks.tolist() == [0, 3, 7, 7, 12]
    calls = len(CALLS)
    again = as_source(datasets.IterableDataset.from_generator(numbers, gen_kwargs={"parts": [3, 4, 0, 5]}))
    assert again.fingerprint == source.fingerprint
    assert len(CALLS) - calls == 2  # the first shard, for its columns' types; the others were counted before
    ADDED.append(1)
    try:
        with pytest.raises(DataError, match="is another one than when its rows were counted"):
            list(Loader(again, batch=4, shuffle=2))
    finally:
        ADDED.clear()


CALLS: list[int] = []
ADDED: list[int] = []


def numbers(parts):
    for part in parts:
        CALLS.append(part)
        for row in range(part):
            yield {"a": 100 * part + row + len(ADDED)}


def test_streams_in_an_order_of_their_own_are_refused(files):
    for data in (stream(files).shuffle(seed=1), stream(files).take(5), stream(files).map(doubled).skip(2)):
        with pytest.raises(DataError, match=r"order of its own .*shuffle=N"):
            as_source(data)
