"""Every kind of source gives the rows that were written, and says what is wrong with those that are damaged."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forgepress.dataloading import ArraySource, Loader, digits, facts, load_source
from forgepress.dataloading import text as text_module
from forgepress.dataloading import transform as transform_module
from forgepress.errors import ConfigError, DataError


def write_idx(path: Path, array: np.ndarray) -> Path:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def mnist_like(tmp_path):
    """Folder with 7 training rows (raw) and 3 test rows (gzipped) of 4×5 pixels."""
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (7, 4, 5)), "t10k": rng.integers(0, 256, (3, 4, 5))}
    for part, end in (("train", ""), ("t10k", ".gz")):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{end}", images[part])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{end}", np.arange(len(images[part])) % 3)
    return tmp_path, images


def everything(source) -> dict[str, torch.Tensor]:
    return source.gather(np.arange(len(source)))


def test_idx_rows_are_pixels_by_channel_and_targets(mnist_like):
    folder, images = mnist_like
    for split, part in (("train", "train"), ("test", "t10k")):
        columns = everything(load_source({"idx": str(folder), "transform": {"scale": 1.0}}, split))
        assert torch.equal(columns["inputs"], torch.from_numpy(images[part]).float()[:, None])
        assert columns["targets"].tolist() == [row % 3 for row in range(len(images[part]))]
        assert columns["targets"].dtype == torch.int64
    assert facts(load_source({"idx": str(folder)})) == {"input_shape": (1, 4, 5), "classes": 3}


def test_a_gzipped_file_is_the_same_data_as_the_raw_one(mnist_like):
    folder, _ = mnist_like
    raw = load_source({"idx": str(folder)})
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    assert load_source({"idx": str(folder)}).fingerprint == raw.fingerprint


@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_idx_file_is_named_with_expected_and_found_bytes(mnist_like, zipped):
    folder, _ = mnist_like
    path = folder / "train-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    if zipped:  # the same, but the stream itself ends early: what could be unpacked is counted
        path.unlink()
        path = path.with_name(path.name + ".gz")
        path.write_bytes(gzip.compress(content, compresslevel=0)[:-17])
    with pytest.raises(DataError) as raised:
        load_source({"idx": str(folder)})
    assert path.name in str(raised.value)
    assert "156 bytes" in str(raised.value)  # 16 + 7 · 4 · 5
    assert "found 147" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG and more", "not an idx file"),
        (b"", "begins with nothing"),
        (b"\0\0\x08\x03\0\0", "found 6"),
    ],
)
def test_a_file_of_another_kind_is_refused(mnist_like, content, words):
    folder, _ = mnist_like
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_source({"idx": str(folder)})


def test_a_damaged_gzip_stream_is_named(mnist_like):
    folder, _ = mnist_like
    path = folder / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF  # the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: found a damaged gzip stream"):
        load_source({"idx": str(folder)}, "test")


def test_missing_files_and_folders_are_named(mnist_like, tmp_path):
    folder, _ = mnist_like
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte"):
        load_source({"idx": str(folder)})
    with pytest.raises(DataError, match="is no folder"):
        load_source({"idx": str(tmp_path / "nowhere")})


def test_images_and_labels_of_different_number_are_refused(mnist_like):
    folder, _ = mnist_like
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(6))
    with pytest.raises(DataError, match=r"7 rows .* has 6"):
        load_source({"idx": str(folder)})


def test_digits_are_those_that_scikit_learn_loads_and_are_read_without_it(monkeypatch):
    theirs = pytest.importorskip("sklearn.datasets").load_digits
    images, targets = digits._digits()
    assert np.array_equal(images, theirs().data) and np.array_equal(targets, theirs().target)
    monkeypatch.setattr(digits, "find_spec", lambda name: None)  # another layout of files than today's
    digits._digits.cache_clear()
    again = digits._digits()
    assert np.array_equal(again[0], images) and np.array_equal(again[1], targets)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._digits.cache_clear()
    with pytest.raises(DataError, match=r"pip install 'forgepress\[examples\]'"):
        digits._digits()


def test_digits_have_a_fixed_split_that_overlaps_nowhere():
    pytest.importorskip("sklearn")
    train, test = load_source("digits"), load_source({"source": "digits"}, "test")
    assert len(train) + len(test) == 1797
    assert 0.17 < len(test) / 1797 < 0.23
    assert facts(train) == {"input_shape": (1, 8, 8), "classes": 10}
    assert set(test.gather(np.arange(len(test)))["targets"].tolist()) == set(range(10))
    pixels = everything(train)["inputs"]
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert train.fingerprint == load_source("digits").fingerprint != test.fingerprint


TEXT = "día uno: añil y pan.\n" * 9  # 189 characters, more bytes


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_text_rows_are_windows_and_targets_the_next_character(tmp_path, monkeypatch, zipped, wide):
    monkeypatch.setattr(text_module, "WIDE_BYTES", 1 << 30 if wide else 0)
    path = tmp_path / ("book.txt.gz" if zipped else "book.txt")
    path.write_bytes(gzip.compress(TEXT.encode()) if zipped else TEXT.encode())
    spec = {"text": str(path), "length": 8}
    train, test = load_source(spec), load_source(spec, "test")
    words = train.vocabulary
    assert words == test.vocabulary == tuple(sorted(set(TEXT)))
    assert facts(train) == {"input_shape": (8,), "vocabulary": len(words), "length": 8}
    at = int(len(TEXT) * 0.9)
    for source, part in ((train, TEXT[:at]), (test, TEXT[at:])):
        columns = everything(source)
        assert len(source) == (len(part) - 1) // 8
        assert columns["inputs"].dtype == columns["targets"].dtype == torch.int64
        for name, shift in (("inputs", 0), ("targets", 1)):
            said = "".join(words[token] for token in columns[name].flatten())
            assert said == part[shift : shift + len(source) * 8]


def test_byte_tokens_are_the_bytes(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode("latin-1"))  # not UTF-8: only bytes can read it
    source = load_source({"text": str(path), "length": 10, "tokens": "bytes", "valid_fraction": 0.5}, "test")
    assert len(source.vocabulary) == 256
    assert bytes(everything(source)["inputs"].flatten().tolist()) == TEXT.encode("latin-1")[94:184]
    with pytest.raises(DataError, match="not UTF-8 at byte 1"):
        load_source({"text": str(path), "length": 10})


def test_text_files_by_split_share_one_vocabulary(tmp_path):
    for name, text in (("a", "abcabc"), ("b", "xyzxyz")):
        (tmp_path / name).write_text(text)
    spec = {"text": {"train": str(tmp_path / "a"), "test": str(tmp_path / "b")}, "length": 5}
    assert load_source(spec).vocabulary == load_source(spec, "test").vocabulary == tuple("abcxyz")
    assert everything(load_source(spec, "test"))["inputs"].tolist() == [[3, 4, 5, 3, 4]]


@pytest.mark.parametrize("change", [{"length": 9}, {"tokens": "bytes"}])
def test_other_windows_are_other_data(tmp_path, change):
    (tmp_path / "book.txt").write_text(TEXT)
    spec = {"text": str(tmp_path / "book.txt"), "length": 8}
    assert load_source(spec).fingerprint != load_source({**spec, **change}).fingerprint
    assert load_source(spec).fingerprint == load_source(spec).fingerprint


def test_text_that_is_missing_short_or_damaged_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("ab")
    with pytest.raises(DataError, match="want at least 9"):
        load_source({"text": str(tmp_path / "short.txt"), "length": 8})
    with pytest.raises(DataError, match=r"nothing is at .*gone\.txt"):
        load_source({"text": str(tmp_path / "gone.txt"), "length": 8})
    (tmp_path / "cut.gz").write_bytes(gzip.compress(TEXT.encode())[:-9])
    with pytest.raises(DataError, match=r"cut\.gz: damaged gzip"):
        load_source({"text": str(tmp_path / "cut.gz"), "length": 8})


def test_transform_is_scale_then_mean_then_std_by_channel():
    raw = torch.randint(0, 256, (5, 3, 2, 2), dtype=torch.uint8)
    transform = transform_module.Transform(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), flatten=True)
    expected = raw.float() / 255
    expected -= torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    expected /= torch.tensor([0.5, 0.6, 0.7])[:, None, None]
    torch.testing.assert_close(transform(raw), expected.flatten(1))
    assert transform(raw).shape == (5, 12)


@pytest.mark.parametrize("rows", [1, 17, 8193])  # the last is more than one piece of the work done at once
def test_transforming_all_at_once_or_batch_by_batch_gives_the_same_bits(monkeypatch, rows):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (rows, 1, 3, 5), dtype=torch.uint8, generator=generator)
    source = ArraySource({"inputs": raw, "targets": torch.arange(rows)})
    transform = transform_module.Transform(scale=1 / 255, mean=(0.1307,), std=(0.3081,))
    kept = transform_module.transformed(source, transform)
    monkeypatch.setattr(transform_module, "CACHED_BYTES", 0)
    lazy = transform_module.transformed(source, transform)
    assert isinstance(kept, ArraySource)
    assert not isinstance(lazy, ArraySource)
    some = np.random.default_rng(0).permutation(rows)[:33]
    assert torch.equal(kept.gather(some)["inputs"], lazy.gather(some)["inputs"])
    assert kept.columns == lazy.columns
    assert kept.fingerprint == lazy.fingerprint == source.fingerprint
    assert torch.equal(source.tensors["inputs"], raw)


def test_a_transform_changes_no_array_of_the_user():
    given = np.ones((4, 3), dtype=np.float32)
    source = transform_module.transformed(
        ArraySource({"inputs": given}), transform_module.Transform(scale=2.0)
    )
    assert everything(source)["inputs"].unique().tolist() == [2.0]
    assert (given == 1).all()


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"scales": 1.0}, ConfigError, "unknown scales"),
        ({"std": [0.0]}, ConfigError, "no 0"),
        ({"mean": "0.1"}, ConfigError, "a list of numbers"),
        ({"flatten": 1}, ConfigError, "true or false"),
        ({"mean": [0.1, 0.2]}, DataError, "2 values"),
    ],
)
def test_a_transform_that_does_not_fit_is_refused(mnist_like, words, error, match):
    with pytest.raises(error, match=match):
        load_source({"idx": str(mnist_like[0]), "transform": words})


def test_tokens_cannot_be_scaled(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT)
    with pytest.raises(DataError, match="leave out scale"):
        load_source({"text": str(tmp_path / "book.txt"), "length": 8, "transform": {"scale": 0.5}})


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("mnits", "want digits"),
        ({"idxx": "x"}, "exactly one of idx"),
        ({}, "has nothing"),
        ({"idx": "x", "text": "y"}, "idx, text"),
        ({"source": {"text": "y", "lenght": 3}}, "did you mean length"),
        ({"source": {"text": "y"}, "batch": 4, "text": "z"}, "given twice"),
        ({"idx": "x", "inputs": "image"}, "."),
        ({"csv": {"dev": "x"}}, "want train and test"),
        ({"csv": "x", "valid_fraction": 1.0}, "valid_fraction=1.0"),
    ],
)
def test_a_spec_that_means_nothing_is_refused(spec, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "y").write_text(TEXT)
    with pytest.raises(ConfigError, match=match):
        load_source(spec)
    with pytest.raises(ConfigError, match="want train or test"):
        load_source("digits", "valid")


def test_the_whole_data_block_of_a_config_is_a_spec(mnist_like):
    block = {
        "source": {"idx": str(mnist_like[0])},
        "batch": 3, "tail": "drop", "shuffle": True, "prefetch": 2,
        "transform": {"flatten": True},
    }  # fmt: skip
    source = load_source(block)
    assert source.columns["inputs"].shape == (20,)
    batches = list(Loader(source, batch=3, tail="drop"))
    assert [batch.columns["inputs"].shape for batch in batches] == [(3, 20)] * 2


@pytest.mark.parametrize(("name", "rows"), [("mnist", (60000, 10000)), ("fashion-mnist", (60000, 10000))])
def test_real_images(real_data, name, rows):
    folder = real_data(name)
    source = load_source({"idx": str(folder), "transform": {"flatten": True}}, "test")
    assert len(source) == rows[1]
    assert facts(source) == {"input_shape": (784,), "classes": 10}
    assert torch.bincount(everything(source)["targets"]).sum() == rows[1]


def test_mnist_has_the_mean_and_deviation_that_everyone_uses(real_data):
    pixels = everything(load_source({"idx": str(real_data("mnist"))}, "train"))["inputs"]
    assert len(pixels) == 60000
    assert round(pixels.mean().item(), 4) == 0.1307
    assert round(pixels.std().item(), 4) == 0.3081


def test_real_text(real_data):
    path = real_data("tiny-shakespeare") / "input.txt"
    source = load_source({"text": str(path), "length": 64})
    assert len(source.vocabulary) == 65
    assert len(source) == 1003853 // 64
    first = everything(source)["inputs"][0]
    assert "".join(source.vocabulary[token] for token in first) == path.read_text()[:64]
