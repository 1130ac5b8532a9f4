"""The memory table and the room on disk of `forgepress check`, against counts by hand."""

import math

import pytest
from forgepress.parallel.layout import Layout
from forgepress.tests.checked_run import MATRICES, WEIGHTS, report
from forgepress.trainer import preflight_rules
from forgepress.trainer.models import BuiltModel
from forgepress.trainer.preflight_memory import activation_bytes
from forgepress.trainer.preflight_rules import in_bytes
from torch import nn


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(ranks=1, **changes):
    """Path → message of everything that is refused."""
    return {".".join(map(str, p.path)): p.message for p in report(ranks, **changes).problems}


def pipeline(**more):
    return {"pipeline": 2, "microbatches": 4, **more}


def prune(**settings):
    return [{"name": "p", "steps": 5, "techniques": [{"name": "pruning.magnitude", **settings}]}]


# ── memory and room


def memory(ranks=1, **changes):
    return {row.what: row.bytes for row in report(ranks, **changes).memory}


def test_memory_of_one_rank_is_counted_weight_by_weight():
    rows = memory(phases=prune())
    assert rows["weights and buffers"] == rows["gradients"] == 4 * WEIGHTS
    assert rows["optimizer moments"] == 8 * WEIGHTS
    assert rows["techniques"] == MATRICES  # one byte a weight for the mask
    assert rows["checkpoint staging"] == 12 * WEIGHTS + MATRICES
    assert report(phases=prune()).checkpoint_bytes == 12 * WEIGHTS + MATRICES


@pytest.mark.parametrize(("optimizer", "each"), [({"name": "sgd"}, 0), ({"name": "sgd", "momentum": 0.9}, 4)])
def test_moments_are_those_of_the_optimizer(optimizer, each):
    assert memory(optimizer=optimizer)["optimizer moments"] == each * WEIGHTS


def test_sharding_deals_rows_and_the_first_rank_has_the_remainder():
    shapes = [(300, 784), (300, 1), (100, 300), (100, 1), (10, 100), (10, 1)]
    first = sum(math.ceil(rows / 7) * columns for rows, columns in shapes)
    assert memory(7, parallel={"shard": 7})["gradients"] == 4 * first
    assert memory(7, parallel={"replicate": 7})["gradients"] == 4 * WEIGHTS


def test_the_tensor_axis_divides_what_its_plan_names_and_keeps_a_row_divided_bias_whole():
    divided = 784 * 300 // 2 + 300 // 2 + 300 * 100 // 2 + 100 + 100 * 10 + 10
    assert memory(2, parallel={"tensor": 2})["gradients"] == 4 * divided


def test_in_a_pipeline_the_fullest_stage_counts():
    assert memory(2, parallel=pipeline())["gradients"] == 4 * (784 * 300 + 300)


def test_activations_are_what_autograd_keeps_counted_by_hand():
    module = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).to("meta")
    built = BuiltModel(module=module, layout=Layout(), task="classification", spec={}, input_shape=(8,))
    # Kept for 10 rows: the input [10, 8] and the ReLU's output [10, 5], which the last layer shares.
    assert activation_bytes(built, 10) == 4 * (10 * 8 + 10 * 5)


def test_a_model_that_does_not_run_on_shapes_still_has_its_other_numbers():
    class Stubborn(nn.Linear):
        def forward(self, input):
            return super().forward(input) * float(self.weight.sum())

    def build(spec, **_):
        module = Stubborn(4, 2).to("meta")
        return BuiltModel(module=module, layout=Layout(), task="classification", spec={}, input_shape=(4,))

    found = report(build_model=build)
    assert any("activations are not in the table" in note for note in found.notes)
    assert {row.what for row in found.memory} >= {"gradients", "optimizer moments"}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "is a file" in refused(checkpoint={"folder": "file"})["checkpoint.folder"]
    assert "is a file" in refused(checkpoint={"folder": "file/below"})["checkpoint.folder"]
    assert refused(checkpoint={"folder": "new/below"}) == {}
    assert not (tmp_path / "new").exists()


def test_a_disk_too_small_for_the_checkpoints_is_refused(monkeypatch):
    size = report().checkpoint_bytes
    assert size is not None
    usage = type("Usage", (), {"free": 4 * size})
    monkeypatch.setattr(preflight_rules.shutil, "disk_usage", lambda path: usage)
    assert refused() == {}  # two kept, the best, and one being written
    message = refused(checkpoint={"keep": 3})["checkpoint.folder"]
    assert f"5 checkpoints of {in_bytes(size)}" in message


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_bytes_are_said_with_their_unit(count, text):
    assert in_bytes(count) == text
