"""Packed documents in a run: targets are the next tokens, and a model sees one document as if it stood alone."""

import json

import numpy as np
import pytest
import torch
from forgepress.dataloading import After, Loader, Packing, facts, load_source, next_tokens
from forgepress.errors import ConfigError
from forgepress.tests.sessions import torchvision_operators
from forgepress.trainer.config import RunConfig
from forgepress.trainer.data import open_data
from forgepress.trainer.loop import Trainer
from forgepress.trainer.preflight import examine

datasets = pytest.importorskip("datasets")

LENGTHS = np.random.default_rng(0).integers(2, 30, 80)


@pytest.fixture
def tables(table_cache):
    """JSON lines of lists of 2 to 29 tokens below 50, for training and testing."""
    generator, paths = np.random.default_rng(1), {}
    for split in ("train", "test"):
        rows = [{"tokens": generator.integers(1, 50, size).tolist()} for size in LENGTHS]
        paths[split] = str(table_cache / f"{split}.json")
        (table_cache / f"{split}.json").write_text("\n".join(map(json.dumps, rows)))
    return paths


def run(tables, folder, **data) -> RunConfig:
    words = {
        "name": "packed",
        "model": {"name": "gpt", "vocabulary": 50, "layers": 1, "heads": 2, "width": 16},
        "data": {"source": {"json": tables}, "inputs": "tokens", "batch": 4, **data},
        "optimizer": {"name": "adamw", "lr": 1.0e-3},
        "phases": [{"name": "dense", "steps": 3}],
        "checkpoint": {"folder": str(folder)},
        "export": [],
    }
    return RunConfig.model_validate(words)


def test_targets_are_the_next_tokens_of_the_same_document():
    columns = {
        "inputs": torch.tensor([[5, 6, 7, 8, 9, 0]]),
        "document": torch.tensor([[1, 1, 2, 3, 3, 0]]),
        "position": torch.tensor([[0, 1, 0, 0, 1, 0]]),
    }
    made = next_tokens(columns)
    assert made["targets"].tolist() == [[6, -100, -100, 9, -100, -100]]
    assert "position_ids" not in made
    named = next_tokens({"input_ids": columns["inputs"], **{k: columns[k] for k in ("document", "position")}})
    assert torch.equal(named["position_ids"], columns["position"])
    doubled = After(next_tokens, lambda given: {**given, "inputs": 2 * given["inputs"]})(columns, None)
    assert doubled["inputs"][0, 0] == 10 and torch.equal(doubled["targets"], made["targets"])


def test_a_run_learns_packed_rows_and_is_measured_on_them(tables, tmp_path):
    config = run(tables, tmp_path / "runs", pack={"length": 32})
    report = examine(config, 1)
    assert not report.problems and report.batches_per_epoch == int(LENGTHS.sum()) // (4 * 32)
    summary = Trainer(config).fit()
    assert summary["steps"] == 3 and np.isfinite(summary["final_loss"])
    data = open_data(config, Trainer(config).mesh)
    assert data.facts["length"] == 32 and data.items_per_row is None
    counted = sum(int((batch.columns["targets"] >= 0).sum()) for batch in data.test or ())
    assert counted == int((LENGTHS - 1).sum())  # every token but the first of each document
    data.close()


def test_rows_in_buckets_are_padded_little(tables, tmp_path):
    plain, bucketed = (
        open_data(run(tables, tmp_path, **words), Trainer(run(tables, tmp_path)).mesh)
        for words in ({"buckets": {"run": 1}}, {"buckets": {"window": 80}})
    )
    padding = [
        sum(int((batch.columns["inputs"] == 0).sum()) for batch in data.train) for data in (plain, bucketed)
    ]
    assert 0 < padding[1] < sum(LENGTHS) * 0.2
    assert bucketed.facts["length"] == 29
    for data in (plain, bucketed):
        data.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"pack": {"length": 8}, "buckets": {}}, "leave one out"),
        ({"pack": {"length": 8}, "cache": {"memory": 100}}, "are not kept"),
        ({"pack": {"length": 8}, "targets": "label"}, "the next tokens"),
    ],
)
def test_words_that_clash_are_refused(tables, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        run(tables, tmp_path, **words)


def test_rows_of_one_length_are_refused_by_name(tmp_path):
    (tmp_path / "text.txt").write_text("some text" * 20)
    with pytest.raises(ConfigError, match="text has rows of one length"):
        load_source({"source": {"text": str(tmp_path / "text.txt"), "length": 8}, "pack": {"length": 8}})


def test_a_transformers_model_sees_each_packed_document_alone():
    transformers = pytest.importorskip("transformers")
    torchvision_operators()
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(settings).eval()
    rows = [np.random.default_rng(row).integers(1, 50, size).tolist() for row, size in enumerate([5, 9, 3])]
    table = datasets.Dataset.from_dict({"input_ids": rows})
    with Loader(table, batch=1, pack=Packing(length=20), transform=next_tokens) as loader:
        columns = next(loader.stream()).columns
    given_ = {name: columns[name] for name in ("input_ids", "position_ids")}
    packed = model(**given_, use_cache=False).logits[0]
    for number in range(1, 4):
        here = columns["document"][0] == number
        alone = model(input_ids=columns["input_ids"][:, here], use_cache=False).logits[0]
        torch.testing.assert_close(packed[here], alone, rtol=1e-4, atol=1e-5)
    assert facts(loader.source) == {}
