"""Tasks: sums over exactly the items that count, whatever the padding, and the columns that models are given."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from forgepress.errors import ConfigError, DataError
from forgepress.trainer.tasks import CausalLanguageModel, logits_of, task_for

VALID = torch.tensor([True, False, True, True, False])


def rows(*shape: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(*shape, classes, generator=generator)
    return logits, torch.randint(classes, shape, generator=generator)


# ── classification


def test_classification_sums_the_cross_entropy_over_rows():
    task = task_for("classification")
    logits, targets = rows(5)
    columns = {"inputs": torch.zeros(5, 2), "targets": targets}
    assert task.inputs(columns) is columns["inputs"]
    torch.testing.assert_close(
        task.loss_sum(logits, columns, None), F.cross_entropy(logits, targets, reduction="sum")
    )
    assert task.count(columns, None).item() == 5 and task.uniform_items_per_row == 1


def test_padding_rows_give_neither_loss_nor_gradient_nor_count():
    task = task_for("classification")
    logits, targets = rows(5)
    logits.requires_grad_()
    columns = {"targets": targets}
    loss = task.loss_sum(logits, columns, VALID)
    loss.backward()
    torch.testing.assert_close(loss, F.cross_entropy(logits[VALID], targets[VALID], reduction="sum"))
    assert task.count(columns, VALID).item() == 3
    assert logits.grad is not None and logits.grad[~VALID].eq(0).all() and logits.grad[VALID].ne(0).all()


def test_a_batch_of_padding_alone_has_loss_zero():
    logits, targets = rows(3)
    task = task_for("classification")
    assert task.loss_sum(logits, {"targets": targets}, torch.zeros(3, dtype=torch.bool)).item() == 0.0


def test_loss_is_computed_in_float32_from_half_precision_logits():
    logits, targets = rows(5)
    half = logits.bfloat16()
    loss = task_for("classification").loss_sum(half, {"targets": targets}, None)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(half.float(), targets, reduction="sum"))


def test_a_class_number_of_minus_100_is_an_error_and_not_skipped():
    logits, targets = rows(5)
    targets[2] = -100
    with pytest.raises(IndexError, match="out of bounds"):
        task_for("classification").loss_sum(logits, {"targets": targets}, None)


def test_targets_may_be_of_any_integer_type():
    logits, targets = rows(5)
    task = task_for("classification")
    assert torch.equal(
        task.loss_sum(logits, {"targets": targets.to(torch.uint8)}, None),
        task.loss_sum(logits, {"targets": targets}, None),
    )


# ── causal language model


def test_ignored_tokens_and_padding_rows_are_no_items():
    task = task_for("causal_lm")
    logits, targets = rows(5, 7)
    targets[0, :3] = -100
    columns = {"inputs": targets, "targets": targets}
    real = targets.ne(-100) & VALID[:, None]
    torch.testing.assert_close(
        task.loss_sum(logits, columns, VALID), F.cross_entropy(logits[real], targets[real], reduction="sum")
    )
    assert task.count(columns, VALID).item() == real.sum().item() == 3 * 7 - 3
    assert task.uniform_items_per_row is None


def test_data_without_ignored_tokens_may_say_so():
    assert CausalLanguageModel(uniform_items_per_row=7).uniform_items_per_row == 7


def test_predictions_mark_which_items_count():
    logits, targets = rows(5, 7)
    flat, aligned, items = task_for("causal_lm").predictions(logits, {"targets": targets}, VALID)
    assert flat.shape == (35, 4) and items.sum().item() == 21
    assert torch.equal(aligned[items], targets[VALID].flatten())


# ── transformers


def outputs(logits: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(loss=None, logits=logits)


def test_columns_become_keywords_and_the_rest_stays_out():
    columns = {name: torch.zeros(2, 3) for name in ("input_ids", "attention_mask", "labels", "weight")}
    given = task_for("transformers.sequence_classification").inputs(columns)
    assert isinstance(given, dict) and set(given) == {"input_ids", "attention_mask"}


def test_a_plain_inputs_column_stands_for_the_main_input():
    columns = {"inputs": torch.zeros(2, 3, 8, 8)}
    assert task_for("transformers.image_classification").inputs(columns) == {
        "pixel_values": columns["inputs"]
    }
    assert task_for("transformers.causal_lm").inputs(columns) == {"input_ids": columns["inputs"]}


def test_labels_of_a_causal_model_are_shifted():
    task = task_for("transformers.causal_lm")
    logits, labels = rows(5, 7)
    labels[0, 4:] = -100
    columns = {"input_ids": labels, "labels": labels}
    reference = F.cross_entropy(
        logits[VALID][:, :-1].flatten(0, 1), labels[VALID][:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(task.loss_sum(outputs(logits), columns, VALID), reference)
    assert task.count(columns, VALID).item() == 3 * 6 - 3


def test_a_causal_model_without_labels_learns_its_tokens_where_the_mask_is_one():
    task = task_for("transformers.causal_lm")
    logits, tokens = rows(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    columns = {"input_ids": tokens, "attention_mask": mask}
    real = mask[:, 1:].bool()
    reference = F.cross_entropy(logits[:, :-1][real], tokens[:, 1:][real], reduction="sum")
    torch.testing.assert_close(task.loss_sum(outputs(logits), columns, None), reference)
    assert task.count(columns, None).item() == 6


def test_targets_of_our_own_text_are_shifted_already():
    logits, targets = rows(5, 7)
    columns = {"inputs": targets, "targets": targets}
    ours, theirs = task_for("causal_lm"), task_for("transformers.causal_lm")
    assert torch.equal(
        theirs.loss_sum(outputs(logits), columns, VALID), ours.loss_sum(logits, columns, VALID)
    )


def test_masked_labels_are_not_shifted():
    logits, labels = rows(5, 7)
    labels[:, ::2] = -100
    task = task_for("transformers.masked_lm")
    reference = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(task.loss_sum(outputs(logits), {"labels": labels}, None), reference)
    assert task.count({"labels": labels}, None).item() == 5 * 3


@pytest.mark.parametrize(
    "name", ["classification", "causal_lm", "transformers.causal_lm", "transformers.masked_lm"]
)
def test_items_are_the_places_of_the_logits_that_predictions_are_made_at(name):
    task = task_for(name)
    logits, labels = rows(5) if name == "classification" else rows(5, 7)
    columns = {"inputs": labels, "targets": labels}
    if name != "classification":
        labels[1:, 3] = -100
    if name.startswith("transformers"):
        columns = {"input_ids": labels, "labels": labels}
    found = task.items(columns, VALID)
    assert found.dtype == torch.bool and found.shape == logits.shape[:-1]
    aligned, _, items = task.predictions(logits, columns, VALID)
    assert torch.equal(logits[found], aligned[items])
    assert int(found.sum()) == int(task.count(columns, VALID)) > 0


# ── what is refused


def test_logits_are_found_in_what_models_give():
    logits = torch.zeros(2, 3)
    assert all(logits_of(given) is logits for given in (logits, outputs(logits), (logits, None)))
    with pytest.raises(ConfigError, match="returned dict"):
        logits_of({})


def test_a_missing_column_names_those_there_are():
    with pytest.raises(DataError, match="no column 'targets', only 'inputs', 'label'"):
        task_for("classification").count({"inputs": torch.zeros(1), "label": torch.zeros(1)}, None)


def test_targets_of_another_shape_are_refused():
    logits, _ = rows(5)
    with pytest.raises(DataError, match=r"logits \[5, 4\] do not fit targets \[5, 1\]"):
        task_for("classification").loss_sum(logits, {"targets": torch.zeros(5, 1)}, None)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'classification'"):
        task_for("clasification")
