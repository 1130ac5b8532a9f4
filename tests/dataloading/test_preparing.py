"""What is done once for a node: by one process while the others wait, with word of how far it is."""

import threading

import numpy as np
import pytest
from forgepress.dataloading import load_source, preparing
from forgepress.dataloading.preparing import Progress, alone
from forgepress.errors import ConfigError


def test_one_at_a_time_holds_a_lock_and_the_next_one_gets_it(tmp_path):
    order, begun = [], threading.Event()

    def other() -> None:
        begun.set()
        with alone(tmp_path / "new" / "work.lock"):
            order.append("other")

    with alone(tmp_path / "new" / "work.lock"):
        thread = threading.Thread(target=other)
        thread.start()
        begun.wait()
        thread.join(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


def test_progress_says_how_much_is_done_and_how_much_is_not_known(monkeypatch, capsys):
    quiet = Progress(10, "rows")
    quiet.add(5)
    monkeypatch.setattr(preparing, "_SAID_EVERY", -1.0)
    known, unknown = Progress(10, "rows"), Progress(None, "shards")
    known.add(5)
    unknown.add(3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("preparing data: 50% of 10 rows, ") and lines[0].endswith(" s left")
    assert lines[1:] == ["preparing data: 3 shards so far"]


def test_packed_texts_are_tokenised_whole_and_without_padding(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("transformers")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "model_max_length": 8}'
    )
    texts = ["a fine film", "film", "a " * 20]
    (tmp_path / "train.txt").write_text("\n".join(texts))
    spec = {"source": {"lines": {"train": str(tmp_path / "train.txt")}}, "inputs": "text"}
    spec["source"]["tokenizer"] = {"name": str(tmp_path)}
    source = load_source({**spec, "pack": {"length": 16}})
    assert source.lengths.tolist() == [5, 3, 22] and source.row_length == 16
    tokens = source.gather(np.array([1]))["input_ids"]
    assert tokens.tolist() == [[2, 7, 3]]
    with pytest.raises(ConfigError, match="tokenizer: no length"):
        load_source(spec)
