"""Text columns become tokens by a tokenizer from a folder."""

import json

import numpy as np
import pytest
import torch
from forgepress.dataloading import facts, load_source
from forgepress.dataloading import tokens as tokens_module
from forgepress.errors import ConfigError, DataError

pytest.importorskip("datasets")
pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "dull", "film", "very", '"', "##ly"]
TEXTS = ["a fine film", "dull", "very very dull film", 'a " fine film', "finely", "a nonsense film"]
"""One of them holds a quote that is never closed, as real TSV files do."""


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with a WordPiece tokenizer of twelve tokens."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 16})
    )
    return folder


@pytest.fixture
def tsv(table_cache):
    """The texts with labels 0, 1, 2, 0, …, tab-separated; test has them backwards."""
    paths = {}
    for split, texts in (("train", TEXTS), ("test", TEXTS[::-1])):
        paths[split] = table_cache / f"{split}.tsv"
        rows = [f"{text}\t{row % 3}" for row, text in enumerate(texts)]
        paths[split].write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return {split: str(path) for split, path in paths.items()}


def spec(tsv, tokenizer, **more):
    words = {"name": str(tokenizer), "length": 5, **more}
    return {"source": {"csv": tsv, "tokenizer": words}, "inputs": "sentence", "targets": "label"}


def by_hand(text: str, length: int) -> tuple[list[int], list[int]]:
    pieces = {"finely": ["fine", "##ly"]}
    words = [piece for word in text.split() for piece in pieces.get(word, [word])]
    numbers = [WORDS.index(word) if word in WORDS else 1 for word in words][: length - 2]
    numbers = [2, *numbers, 3]
    padding = length - len(numbers)
    return numbers + [0] * padding, [1] * len(numbers) + [0] * padding


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_text_is_its_tokens_padded_or_cut_to_the_splits_length(tsv, tokenizer, split):
    source = load_source(spec(tsv, tokenizer, test_length=7), split)
    rows = source.gather(np.arange(len(source)))
    length = {"train": 5, "test": 7}[split]
    expected = [by_hand(text, length) for text in (TEXTS if split == "train" else TEXTS[::-1])]
    assert rows.keys() == {"input_ids", "attention_mask", "targets"}
    assert rows["input_ids"].tolist() == [numbers for numbers, _ in expected]
    assert rows["attention_mask"].tolist() == [mask for _, mask in expected]
    assert rows["targets"].tolist() == [0, 1, 2, 0, 1, 2]
    assert rows["input_ids"].dtype == torch.int64
    assert facts(source) == {"vocabulary": len(WORDS), "length": length, "classes": 3}


def test_token_types_come_when_asked_for(tsv, tokenizer):
    source = load_source(spec(tsv, tokenizer, token_types=True))
    assert source.columns["token_type_ids"].shape == (5,)


def test_a_second_opening_reads_the_kept_tokens(tsv, tokenizer, monkeypatch):
    first = load_source(spec(tsv, tokenizer)).gather(np.arange(3))
    monkeypatch.setattr(tokens_module, "_encoded", None)  # calling it would fail
    again = load_source(spec(tsv, tokenizer)).gather(np.arange(3))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_tokens_and_length_are_part_of_the_fingerprint(tsv, tokenizer):
    mark = load_source(spec(tsv, tokenizer)).fingerprint
    assert load_source(spec(tsv, tokenizer)).fingerprint == mark
    assert load_source(spec(tsv, tokenizer, length=6)).fingerprint != mark
    changed = [*WORDS[:5], "film", *WORDS[6:8], "a", *WORDS[9:]]
    (tokenizer / "vocab.txt").write_text("\n".join(changed))
    other = load_source(spec(tsv, tokenizer))
    assert other.fingerprint != mark
    assert other.gather(np.array([0]))["input_ids"].tolist() == [[2, 8, 6, 5, 3]]


def test_a_separator_can_be_said(table_cache, tokenizer):
    path = table_cache / "table.txt"
    path.write_text("sentence;label\na fine film;1\ndull;0\n")
    source = {
        "csv": {"train": str(path)},
        "separator": ";",
        "tokenizer": {"name": str(tokenizer), "length": 5},
    }
    found = load_source({"source": source, "inputs": "sentence", "targets": "label"})
    assert found.gather(np.array([1]))["input_ids"].tolist() == [[2, 7, 3, 0, 0]]


@pytest.mark.parametrize(
    "words, error, message",
    [
        ({"name": "no/such/folder"}, DataError, "'no/such/folder' is no folder"),
        ({"name": "package:no_such_package"}, ConfigError, "no package 'no_such_package' is installed"),
        ({"length": 17}, ConfigError, "length 17 is more than the 16 tokens"),
        ({"length": 0}, ConfigError, "tokenizer.length=0"),
        ({"lenght": 3}, ConfigError, "unknown lenght; known: name, length"),
        ({"length": None}, ConfigError, "no length"),
    ],
)
def test_wrong_words_say_what_is_wanted(tsv, tokenizer, words, error, message):
    with pytest.raises(error, match=message):
        load_source(spec(tsv, tokenizer, **words))


def test_a_column_of_numbers_or_none_at_all_is_refused(tsv, tokenizer):
    with pytest.raises(DataError, match="takes a column of text"):
        load_source({**spec(tsv, tokenizer), "inputs": "label", "targets": None})
    with pytest.raises(ConfigError, match=r"needs data\.inputs"):
        load_source({**spec(tsv, tokenizer), "inputs": None})
