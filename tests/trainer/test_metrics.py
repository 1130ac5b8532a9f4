"""Metrics: sums over real items that are the same however rows are split over ranks and batches."""

import math
import sys

import pytest
import torch
from forgepress.errors import ConfigError, DataError
from forgepress.trainer.metrics import Meter
from forgepress.trainer.tasks import task_for

CLASSES = task_for("classification")
WORDS = task_for("causal_lm")


def margins(outputs, columns):
    """An own metric: one value for each row, NaN in padding rows as a division by zero would give."""
    return outputs[:, 0] / columns["weight"]


def per_token(outputs, columns):
    return columns["targets"]


def one_number(outputs, columns):
    return 3.0


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_metrics", sys.modules[__name__])


def test_accuracy_counts_real_rows_only():
    logits = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])]
    columns = {"targets": torch.tensor([0, 1, 0, 0, 0])}
    meter = Meter(CLASSES, ["accuracy"])
    meter.update(logits, columns, torch.tensor([True, True, True, False, False]))
    assert meter.result()["accuracy"] == pytest.approx(2 / 3)


def test_perplexity_of_guessing_is_the_vocabulary():
    meter = Meter(WORDS, ["perplexity"])
    meter.update(torch.zeros(3, 5, 17), {"targets": torch.ones(3, 5, dtype=torch.int64)})
    assert meter.result()["perplexity"] == pytest.approx(17.0)


def test_perplexity_too_large_for_a_float_is_infinite():
    logits = torch.tensor([[[0.0, 1e4]]])
    meter = Meter(WORDS, ["perplexity"])
    meter.update(logits, {"targets": torch.zeros(1, 1, dtype=torch.int64)})
    assert meter.result()["perplexity"] == math.inf


def test_three_uneven_ranks_add_up_to_one_process():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(17, 6, 5, generator=generator)
    targets = torch.randint(5, (17, 6), generator=generator)
    targets[3:9, 2:] = -100  # ranks differ in items per row: a mean of means would be wrong
    names = ["perplexity", "accuracy"]
    whole = Meter(WORDS, names)
    whole.update(logits, {"targets": targets})
    ranks = [Meter(WORDS, names) for _ in range(3)]
    for meter, (start, end) in zip(ranks, ((0, 3), (3, 16), (16, 17)), strict=True):
        meter.update(logits[start:end], {"targets": targets[start:end]})
    added = torch.stack([meter.sums() for meter in ranks]).sum(0)
    assert added.dtype == torch.float64 and added.shape == (3, 2)
    assert ranks[0].result(added) == pytest.approx(whole.result())
    assert ranks[0].result() != pytest.approx(whole.result())


def test_no_names_means_those_of_the_task_and_the_loss_is_always_there():
    assert Meter(CLASSES).names == ("accuracy", "loss")
    assert Meter(WORDS, ["loss", "accuracy"]).names == ("loss", "accuracy")
    meter = Meter(WORDS)
    meter.update(torch.zeros(3, 5, 17), {"targets": torch.ones(3, 5, dtype=torch.int64)})
    assert meter.result() == pytest.approx({"perplexity": 17.0, "loss": math.log(17)})


def test_an_own_metric_is_the_mean_over_real_rows(own):
    outputs = torch.tensor([[2.0, 9.0], [4.0, 0.0], [0.0, 0.0]])
    columns = {"weight": torch.tensor([1.0, 2.0, 0.0]), "targets": torch.tensor([0, 1, 1])}
    meter = Meter(CLASSES, ["own_metrics:margins"])
    meter.update(outputs, columns, torch.tensor([True, True, False]))
    meter.update(outputs[:1], {name: column[:1] for name, column in columns.items()})
    assert meter.result()["own_metrics:margins"] == pytest.approx((2 + 2 + 2) / 3)


def test_an_own_metric_may_give_values_for_each_token(own):
    targets = torch.tensor([[1, 2, 3], [4, 5, 6]])
    meter = Meter(WORDS, ["own_metrics:per_token"])
    meter.update(torch.zeros(2, 3, 7), {"targets": targets}, torch.tensor([False, True]))
    assert meter.result()["own_metrics:per_token"] == 5.0


def test_updating_keeps_no_graph():
    logits = torch.zeros(2, 3, requires_grad=True)
    meter = Meter(CLASSES)
    meter.update(logits, {"targets": torch.zeros(2, dtype=torch.int64)})
    assert not meter.sums().requires_grad


def test_what_is_wrong_is_refused(own):
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        Meter(CLASSES, ["acuracy"])
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        Meter(CLASSES, ["own_metrics:nothing"])
    with pytest.raises(ConfigError, match="gave float; want a tensor of values for 2 rows"):
        meter = Meter(CLASSES, ["own_metrics:one_number"])
        meter.update(torch.zeros(2, 3), {"targets": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(DataError, match="accuracy saw no item"):
        Meter(CLASSES).result()
