"""Streams over Parquet files, folders of pictures, several sources at once, and tables read where they lie."""

import io

import numpy as np
import pytest
import torch
from forgepress.dataloading import ArraySource, Loader, as_source, load_source
from forgepress.dataloading import decoding as decoding_module
from forgepress.dataloading import mapped as mapped_module
from forgepress.dataloading.faults import Substituting
from forgepress.dataloading.mapped import copy_runs, fixed, ragged
from forgepress.dataloading.meter import Meter
from forgepress.dataloading.parquet import ParquetSource
from forgepress.errors import ConfigError, DataError
from hypothesis import given, settings
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")
drawn = settings(max_examples=40, deadline=None, derandomize=True)


def fresh(shape, dtype):
    return torch.full(shape, 99, dtype=dtype)


@drawn
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 3), st.integers(0, 99))
def test_rows_of_any_chunks_are_those_that_arrow_gives(sizes, offset, seed):
    generator = np.random.default_rng(seed)
    chunks = []
    for size in sizes:
        values = generator.integers(-99, 99, (size + offset, 6)).astype(np.int32)
        whole = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 6) if len(values) else None
        chunks.append(whole.slice(offset) if whole is not None else pa.array([], pa.list_(pa.int32(), 6)))
    column = pa.chunked_array(chunks, pa.list_(pa.int32(), 6))
    reader = fixed(column)
    if not len(column):
        assert reader is None
        return
    rows = generator.integers(0, len(column), 20)
    assert reader.gather(rows, fresh).tolist() == column.take(rows).to_pylist()


@drawn
@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 70))
def test_lists_are_padded_cut_and_packed_as_by_hand(lengths, pieces, width):
    rows = [[100 * row + at for at in range(size)] for row, size in enumerate(lengths)]
    parts = np.array_split(np.arange(len(rows)), pieces)
    column = pa.chunked_array([pa.array([rows[row] for row in part], pa.list_(pa.int64())) for part in parts])
    reader = ragged(column)
    order = np.random.default_rng(width).permutation(len(rows))
    padded = reader.padded(order, width, -1, fresh)
    assert padded.tolist() == [(rows[row] + [-1] * width)[:width] for row in order]
    sizes = reader.lengths[order]
    out = torch.full((int(sizes.sum()),), -7)
    reader.runs(order, np.zeros(len(order), int), sizes, np.cumsum(sizes) - sizes, out)
    assert out.tolist() == [number for row in order for number in rows[row]]


@pytest.mark.parametrize("in_order", [True, False])
def test_runs_are_copied_exactly_however_numpy_writes(monkeypatch, in_order):
    monkeypatch.setattr(mapped_module, "_in_order", lambda: in_order)
    memory, out = torch.arange(1000), torch.full((400,), -1)
    lengths = np.array([5, 0, 120, 17, 1, 64])
    begin = np.array([995, 3, 40, 0, 999, 700])
    places = np.array([0, 5, 10, 130, 150, 336])
    copy_runs(memory, begin, lengths, places, out)
    for at, size, place in zip(begin, lengths, places, strict=True):
        assert out[place : place + size].tolist() == list(range(at, at + size))


def test_a_dataset_keeps_types_selection_and_lists_and_gives_copies(tmp_path):
    columns = {"a": [[row, row + 1] for row in range(50)], "b": [row / 2 for row in range(50)]}
    features = datasets.Features(
        {"a": datasets.Sequence(datasets.Value("int32"), length=2), "b": datasets.Value("float64")}
    )
    table = datasets.Dataset.from_dict(columns, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    source = as_source(loaded)
    assert {name: info.dtype for name, info in source.columns.items()} == {
        "a": torch.int32,
        "b": torch.float64,
    }
    chosen = as_source(loaded.select([7, 3, 9]).shuffle(seed=1))
    got = chosen.gather(np.arange(3))
    assert sorted(got["a"][:, 0].tolist()) == [3, 7, 9]
    got["a"].fill_(-1)
    assert sorted(chosen.gather(np.arange(3))["a"][:, 0].tolist()) == [3, 7, 9]
    assert source.fingerprint == as_source(datasets.load_from_disk(str(tmp_path / "saved"))).fingerprint
    assert source.fingerprint != chosen.fingerprint
    with pytest.raises(DataError, match=r"cannot be loaded; want a datasets\.Dataset"):
        as_source(iter(loaded))


@pytest.fixture
def parts(tmp_path):
    """Three files of 40 rows in row groups of 7."""
    import pyarrow.parquet as parquet

    for number in range(3):
        rows = list(range(number * 40, number * 40 + 40))
        table = pa.table({"a": rows, "b": [[row / 4, 1.0] for row in rows]})
        parquet.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=7)
    return tmp_path


def test_streamed_parquet_gives_every_row_once_and_reads_each_row_group_once_an_epoch(parts, monkeypatch):
    files = sorted(parts.glob("*.parquet"))
    source = ParquetSource(files, {"a": "inputs", "b": "b"}, groups=8)
    assert len(source) == 120 and source.blocks[1] == 7
    read = []
    original = ParquetSource._table
    monkeypatch.setattr(
        ParquetSource, "_table", lambda self, number: read.append(number) or original(self, number)
    )
    source = ParquetSource(files, {"a": "inputs", "b": "b"}, groups=8)
    read.clear()
    with Loader(source, batch=10, shuffle=4, threads=2) as loader:
        rows = [batch.columns for batch in loader]
    inputs = torch.cat([columns["inputs"] for columns in rows])
    assert sorted(inputs.tolist()) == list(range(120))
    assert torch.equal(torch.cat([columns["b"] for columns in rows])[:, 0], inputs / 4)
    epoch = [number for number in range(18) if number in read]
    assert epoch == list(range(18)) and len(read) <= 2 * 18  # of the next epoch some, none over and over


def test_streamed_parquet_is_a_word_of_the_config_and_damage_names_the_file(parts):
    spec = {
        "parquet": {"train": str(parts / "part-[01].parquet"), "test": str(parts / "part-2.parquet")},
        "stream": True,
    }
    assert [len(load_source(spec, split)) for split in ("train", "test")] == [80, 40]
    with pytest.raises(ConfigError, match="stream excludes valid_fraction"):
        load_source({**spec, "valid_fraction": 0.2})
    (parts / "part-1.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"part-1\.parquet cannot be read as parquet"):
        load_source(spec)


def picture(pixels: np.ndarray, form: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form)
    return file.getvalue()


@pytest.mark.parametrize("with_jpeg", [True, False])
def test_folders_of_pictures_are_classes_fitted_to_one_size(tmp_path, monkeypatch, with_jpeg):
    if not with_jpeg:
        monkeypatch.setattr(decoding_module, "_jpeg", lambda: None)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    wide = np.repeat(np.full((8, 1, 3), 40, np.uint8), 20, axis=1)
    for name, content in (("cat/a.png", picture(pixels, "PNG")), ("dog/b.jpg", picture(wide, "JPEG"))):
        (tmp_path / "train" / name).parent.mkdir(parents=True)
        (tmp_path / "train" / name).write_bytes(content)
    source = load_source({"images": str(tmp_path), "size": 8, "transform": {"scale": 1.0}})
    columns = source.gather(np.arange(2))
    assert columns["inputs"].shape == (2, 3, 8, 8) and columns["targets"].tolist() == [0, 1]
    assert torch.equal(columns["inputs"][0], torch.from_numpy(pixels).permute(2, 0, 1).float())
    assert (columns["inputs"][1] - 40).abs().max() <= 1
    with pytest.raises(ConfigError, match="needs size"):
        load_source({"images": str(tmp_path)})


def test_both_decoders_give_the_same_bits():
    pytest.importorskip("simplejpeg")
    noise = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    for pixels in (noise, noise[:, :, 0]):
        content, like = picture(pixels, "JPEG"), torch.empty(1 if pixels.ndim == 2 else 3, 20, 24)
        fast = decoding_module.decode([content], name="x", rows=[0], like=like, make=fresh)
        slow = decoding_module._with_pillow(content, like.shape[0], "x")
        assert np.array_equal(fast[0].permute(1, 2, 0).numpy(), slow)


def test_several_sources_are_mixed_by_weight_in_training_and_joined_for_testing(tmp_path):
    for name, text in (("one", "abcd" * 200), ("two", "wxyz" * 50)):
        (tmp_path / name).write_text(text)
    mix = [
        {"text": str(tmp_path / name), "length": 4, "tokens": "bytes", "weight": weight}
        for name, weight in (("one", 1), ("two", 3))
    ]
    source = load_source({"mix": mix})
    with Loader(source, batch=20) as loader:
        first = next(loader.stream()).columns["inputs"][:, 0]
    assert int((first >= ord("w")).sum()) == 15
    assert len(load_source({"mix": mix}, "test")) == 23
    with pytest.raises(ConfigError, match="one for each source, or none"):
        load_source({"mix": [{**mix[0]}, {key: mix[1][key] for key in ("text", "length", "tokens")}]})
    with pytest.raises(DataError, match="need the same columns"):
        Loader([ArraySource({"a": [1]}), ArraySource({"b": [1]})], batch=1)


class Damaged(ArraySource):
    resident = False

    def gather(self, rows, make=None):
        if bad := sorted({3, 4, 11} & set(rows.tolist())):
            raise DataError(f"row {bad[0]} is damaged")
        return super().gather(rows)


def test_a_damaged_row_has_one_stand_in_on_every_rank_within_a_limit():
    source = Damaged({"number": torch.arange(20)})
    with pytest.raises(DataError, match="row 3 is damaged"):
        list(Loader(source, batch=5, shuffle=False))
    given_ = {"batch": 6, "on_error": "substitute", "seed": 2}
    parts = [list(Loader(source, rank=rank, ranks=2, **given_)) for rank in range(2)]
    seen = {
        row: number
        for part in parts
        for batch in part
        for row, number in zip(batch.rows.tolist(), batch.columns["number"].tolist(), strict=True)
    }
    assert seen == {row: {3: 5, 4: 5, 11: 12}.get(row, row) for row in range(20)}
    with Loader(source, **given_) as loader:
        assert len(list(loader)) == 4
        assert loader.report().substituted == 3
    with pytest.raises(DataError, match="2 damaged rows were replaced before, and no more are allowed"):
        list(Loader(source, **given_, most_errors=2))
    assert Substituting(source, 5, Meter()).gather(np.array([19]))["number"].tolist() == [19]
