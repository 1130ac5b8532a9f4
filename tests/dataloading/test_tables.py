"""Tables that Hugging Face datasets reads become tensors, whole batches at a time."""

import io
import json

import numpy as np
import pytest
import torch
from forgepress.dataloading import ArraySource, Loader, facts, load_source
from forgepress.dataloading import tables as tables_module
from forgepress.dataloading.cache import CachedSource
from forgepress.errors import ConfigError, DataError

pa = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")
ROWS = 23


def values() -> dict[str, list]:
    """Columns a (two numbers) and b (an integer) of 23 rows."""
    return {"a": [[row / 4, -row / 8] for row in range(ROWS)], "b": [row % 3 for row in range(ROWS)]}


def write(kind: str, folder, columns: dict[str, list]):
    """`columns` as a file or folder of `kind`."""
    path = folder / ("saved" if kind == "arrow" else f"table.{kind}")
    table = datasets.Dataset.from_dict(columns)
    if kind == "arrow":
        table.save_to_disk(str(path))
    elif kind == "json":
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        getattr(table, f"to_{kind}")(str(path))
    return path


def everything(source) -> dict[str, torch.Tensor]:
    return source.gather(np.arange(len(source)))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", ["parquet", "json", "arrow"])
def test_tables_of_lists_become_matrices(table_cache, monkeypatch, kind, in_memory):
    monkeypatch.setattr(tables_module, "KEPT_BYTES", 1 << 30 if in_memory else 0)
    path = write(kind, table_cache, values())
    spec = {kind: {"train": str(path)}, "inputs": "a", "targets": "b"}
    if kind == "arrow":
        spec = {**spec, "arrow": str(path), "valid_fraction": 0.0}
    source = load_source(spec)
    assert isinstance(source, ArraySource) == in_memory
    columns = everything(source)
    assert torch.equal(columns["inputs"], torch.tensor(values()["a"]))
    assert torch.equal(columns["targets"], torch.tensor(values()["b"]))
    order = np.array([7, 0, 22, 7])
    assert torch.equal(source.gather(order)["inputs"], columns["inputs"][order])
    loader = Loader(source, batch=5)
    found = [value for batch in loader for value in batch.columns["inputs"][:, 0].tolist()]
    assert sorted(found) == [row / 4 for row in range(ROWS)]
    assert loader.threaded != in_memory
    loader.close()


def test_csv_columns_keep_their_names_unless_renamed(table_cache):
    path = write("csv", table_cache, {"x": [0.5, 1.5, 2.5], "y": [1, 0, 1]})
    named = everything(load_source({"csv": {"train": str(path)}}))
    assert {name: tensor.dtype for name, tensor in named.items()} == {"x": torch.float32, "y": torch.int64}
    renamed = load_source(
        {"source": {"csv": {"train": str(path)}}, "inputs": "x", "targets": "y", "batch": 2}
    )
    assert everything(renamed)["inputs"].tolist() == [0.5, 1.5, 2.5]
    assert facts(renamed) == {"input_shape": (), "classes": 2}


def test_a_single_table_is_split_without_overlap(table_cache):
    path = write("parquet", table_cache, {"a": list(range(200))})
    spec = {"parquet": str(path), "valid_fraction": 0.25}
    train, test = (everything(load_source(spec, split))["a"].tolist() for split in ("train", "test"))
    assert sorted(train + test) == list(range(200))
    assert 30 < len(test) < 70


def test_files_of_a_pattern_are_read_in_the_order_of_their_names(table_cache):
    for number in (2, 0, 1):
        rows = {"a": [number * 10, number * 10 + 1]}
        datasets.Dataset.from_dict(rows).to_parquet(str(table_cache / f"part-{number}.parquet"))
    source = load_source({"parquet": {"train": str(table_cache / "part-*.parquet")}})
    assert everything(source)["a"].tolist() == [0, 1, 10, 11, 20, 21]


def test_splits_saved_to_disk_are_found_by_name(table_cache):
    parts = {
        name: datasets.Dataset.from_dict({"a": rows})
        for name, rows in (("train", [1, 2]), ("validation", [3]))
    }
    datasets.DatasetDict(parts).save_to_disk(str(table_cache / "both"))
    spec = {"arrow": str(table_cache / "both")}
    assert everything(load_source(spec))["a"].tolist() == [1, 2]
    assert everything(load_source(spec, "test"))["a"].tolist() == [3]


def test_lines_of_text_become_bytes_cut_and_filled_up(table_cache):
    (table_cache / "lines.txt").write_text("ab\nañb\n\nabcdefgh\n")
    source = load_source({"lines": {"train": str(table_cache / "lines.txt")}, "inputs": "text", "length": 5})
    expected = [b"ab", "añb".encode(), b"", b"abcde"]
    found = everything(source)["inputs"]
    assert found.tolist() == [[byte + 1 for byte in text] + [0] * (5 - len(text)) for text in expected]
    assert facts(source) == {"input_shape": (5,), "vocabulary": 257, "length": 5}
    with pytest.raises(DataError, match="is text; say length"):
        load_source({"lines": {"train": str(table_cache / "lines.txt")}})


def encoded(pixels: np.ndarray) -> dict:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_pictures(path, pictures) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=11)})
    columns = {"image": pictures, "label": [row % 3 for row in range(len(pictures))]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kept", [True, False])
def test_pictures_are_decoded_to_channels_height_width(table_cache, monkeypatch, channels, kept):
    monkeypatch.setattr(tables_module, "KEPT_BYTES", 1 << 30 if kept else 0)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 6, 3), dtype=np.uint8)
    pixels = pixels[..., 0] if channels == 1 else pixels
    path = table_cache / "pictures.parquet"
    write_pictures(path, [encoded(one) for one in pixels])
    spec = {"parquet": {"train": str(path)}, "inputs": "image", "targets": "label"}
    source = load_source({**spec, "transform": {"scale": 1.0}})
    expected = torch.from_numpy(pixels).float()
    expected = expected[:, None] if channels == 1 else expected.permute(0, 3, 1, 2)
    for rows in ([3, 1], [1, 8, 3, 3], list(range(9))):  # what was decoded before and what was not, mixed
        assert torch.equal(source.gather(np.array(rows))["inputs"], expected[rows])
    assert facts(source)["input_shape"] == (channels, 4, 6)
    torch.testing.assert_close(everything(load_source(spec))["inputs"], expected / 255)


def test_the_number_of_classes_is_what_the_file_says(table_cache):
    path = table_cache / "pictures.parquet"
    write_pictures(path, [encoded(np.zeros((2, 2), np.uint8))] * 4)
    source = load_source({"parquet": {"train": str(path)}, "inputs": "image", "targets": "label"})
    assert facts(source)["classes"] == 11


def test_a_damaged_picture_or_one_of_another_size_is_named_by_row(table_cache):
    good = encoded(np.zeros((4, 6), np.uint8))
    for bad, words in (
        ({"bytes": b"no picture", "path": None}, "cannot be read"),
        (encoded(np.zeros((4, 5), np.uint8)), "4×5"),
    ):
        path = table_cache / f"{words[:2]}.parquet"
        write_pictures(path, [good, good, bad])
        source = load_source({"parquet": {"train": str(path)}, "inputs": "image", "targets": "label"})
        with pytest.raises(DataError, match=f"'inputs', row 2: .*{words}"):
            list(Loader(source, batch=2))


def test_a_decoded_row_is_decoded_once(numbered, slow):
    source = slow(numbered(9))
    cached = CachedSource(source)
    for rows in ([3, 1, 3], [1, 4], [4, 3, 1]):
        assert cached.gather(np.array(rows))["number"].tolist() == rows
    assert [asked.tolist() for asked in source.asked] == [[1, 3], [4]]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": [[1, 2], [3]]}, "lists of 1 to 2 values"),
        ({"a": [1, None, 3]}, "no value in row 1"),
        ({"a": [{"z": 1}] * 2}, "want numbers"),
    ],
)
def test_values_that_make_no_tensor_are_named(table_cache, columns, words):
    path = write("parquet", table_cache, columns)
    with pytest.raises(DataError, match=f"'a' .*{words}"):
        load_source({"parquet": {"train": str(path)}})


def test_a_later_row_of_another_shape_is_refused_when_read(table_cache, monkeypatch):
    monkeypatch.setattr(tables_module, "KEPT_BYTES", 0)
    path = write("json", table_cache, {"a": [[1, 2], [3, 4], [5]]})
    source = load_source({"json": {"train": str(path)}})
    assert source.gather(np.array([1]))["a"].tolist() == [[3, 4]]
    with pytest.raises(DataError, match="want one shape"):
        source.gather(np.array([2]))


def test_missing_or_damaged_tables_and_columns_are_named(table_cache):
    path = write("parquet", table_cache, values())
    with pytest.raises(DataError, match="no column c; it has a, b"):
        load_source({"parquet": {"train": str(path)}, "inputs": "c"})
    with pytest.raises(ConfigError, match="want two columns"):
        load_source({"parquet": {"train": str(path)}, "inputs": "a", "targets": "a"})
    with pytest.raises(DataError, match="names no files for test"):
        load_source({"parquet": {"train": str(path)}}, "test")
    with pytest.raises(DataError, match="nothing is at"):
        load_source({"parquet": str(table_cache / "gone*.parquet")})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"table\.parquet cannot be read as parquet"):
        load_source({"parquet": {"train": str(path)}})


def test_changed_rows_are_other_data_and_a_copied_file_is_not(table_cache):
    path = write("parquet", table_cache, values())
    spec = {"parquet": {"train": str(path)}}
    first = load_source(spec).fingerprint
    (table_cache / "elsewhere").mkdir()
    copy = table_cache / "elsewhere" / path.name
    copy.write_bytes(path.read_bytes())
    assert load_source({"parquet": {"train": str(copy)}}).fingerprint == first
    changed = values()
    changed["b"][5] += 1
    write("parquet", table_cache, changed)
    assert load_source(spec).fingerprint != first


def test_real_pictures(real_data, table_cache):
    folder = real_data("cifar10-jpeg")
    spec = {"parquet": {"test": str(folder / "test.parquet")}, "inputs": "image", "targets": "label"}
    source = load_source(spec, "test")
    assert len(source) == 5000
    assert facts(source) == {"input_shape": (3, 32, 32), "classes": 10}
    inputs = source.gather(np.arange(1000))["inputs"]
    for mean, known in zip(inputs.mean((0, 2, 3)).tolist(), (0.4913, 0.4821, 0.4465), strict=True):
        assert abs(mean - known) < 0.02


def test_real_sentences(real_data, table_cache):
    path = real_data("sst2") / "dev.tsv"
    source = load_source(
        {"csv": {"test": str(path)}, "inputs": "sentence", "targets": "label", "length": 64}, "test"
    )
    columns = everything(source)
    assert columns["targets"].bincount().tolist() == [428, 444]
    line = path.read_text().splitlines()[1].encode()[:64]
    assert bytes(byte - 1 for byte in columns["inputs"][0].tolist() if byte) == line.split(b"\t")[0]
