"""`forgepress check`: what it refuses, what it counts; real models on shapes alone, a source made up here."""

import json

import pytest
from forgepress.errors import ConfigError, DataError
from forgepress.parallel.layout import Layout
from forgepress.tests.checked_run import ROWS, WEIGHTS, config, images, report
from forgepress.trainer.config_file import load_with_origins
from forgepress.trainer.models import BuiltModel
from forgepress.trainer.preflight import bubble, check, examine, print_report
from torch import nn


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(ranks=1, **changes):
    """Path → message of everything that is refused."""
    return {".".join(map(str, p.path)): p.message for p in report(ranks, **changes).problems}


# ── the mesh and the batch


def test_a_plain_run_is_accepted_and_its_steps_are_counted():
    found = report()
    assert found.problems == ()
    assert (found.rows, found.batches_per_epoch, found.parameters) == (ROWS, 3, WEIGHTS)
    assert found.phases[0].steps == 6
    assert report(data={"source": "digits", "batch": 32, "tail": "drop"}).phases[0].steps == 4


def test_degrees_that_do_not_make_the_ranks_are_refused_with_the_number_that_does():
    message = refused(4, parallel={"shard": 3, "tensor": 2})["parallel"]
    assert "shard 3 × tensor 2 needs 6 ranks, but there are 4" in message
    assert "--ranks 6" in message


@pytest.mark.parametrize("engine", ["deepspeed", "accelerate"])
def test_axes_that_an_engine_does_not_have_are_refused_by_name(engine):
    message = refused(ranks=2, parallel={"engine": engine, "tensor": 2})["parallel.tensor"]
    assert message == f"given 2, but engine {engine} has replicate and shard alone; use engine: native"


def test_sequences_are_not_cut_where_there_are_none():
    assert "use context: 1" in refused(2, parallel={"context": 2})["parallel.context"]


def test_a_batch_must_give_every_rank_a_row_in_every_microbatch():
    parallel = {"replicate": 2, "shard": 2, "microbatches": 3}
    assert "data.batch" not in refused(4, data={"source": "digits", "batch": 12}, parallel=parallel)
    message = refused(4, data={"source": "digits", "batch": 11}, parallel=parallel)["data.batch"]
    assert "given 11" in message and "12 samples or more" in message
    assert "evaluate.batch" in refused(4, parallel=parallel, evaluate={"batch": 11})


def test_an_epoch_without_a_batch_is_refused_and_one_of_one_batch_is_noted():
    assert "leaves no batch" in refused(data={"source": "digits", "batch": 71, "tail": "drop"})["data.batch"]
    found = report(data={"source": "digits", "batch": 71})
    assert found.problems == () and "one whole epoch" in found.notes[0]


def test_a_last_batch_too_small_for_all_pieces_is_noted():
    parallel = {"replicate": 4, "microbatches": 2}  # 70 = 2 × 32 + 6: six rows for eight pieces
    assert any("6 rows for 8 pieces" in note for note in report(4, parallel=parallel).notes)


# ── the data


def test_data_that_cannot_be_opened_are_one_problem_and_the_rest_is_still_checked():
    def broken(spec, split="train"):
        raise DataError("nothing is at 'gone.txt'")

    found = report(load_source=broken, parallel={"recompute": 1, "engine": "deepspeed"})
    assert [p.path for p in found.problems] == [("parallel", "recompute"), ("data", "source")]
    assert "gone.txt" in found.problems[1].message
    assert found.phases[0].steps is None  # epochs of what could not be opened


def test_the_source_gets_the_whole_data_block_and_the_training_split():
    seen = []

    def remember(spec, split):
        seen.append((spec, split))
        return images(spec)

    report(load_source=remember, data={"source": "digits", "batch": 8, "inputs": "inputs"})
    assert seen[0][0]["source"] == "digits" and seen[0][0]["inputs"] == "inputs" and seen[0][1] == "train"


# ── the model on the mesh


def test_a_tensor_degree_that_does_not_divide_the_model_is_refused():
    assert report(3, parallel={"tensor": 3}).problems == ()
    assert (
        "does not divide the model's 300 fc1 features"
        in refused(7, parallel={"tensor": 7})["parallel.tensor"]
    )


def test_a_tensor_plan_of_the_config_is_checked_by_features():
    cut = {"fc2": "column", "fc3": "row"}
    assert report(4, parallel={"tensor": 4, "tensor_plan": cut}).problems == ()
    assert (
        "100 output features"
        in refused(3, parallel={"tensor": 3, "tensor_plan": cut})["parallel.tensor_plan"]
    )
    missing = {"blocks.*": "column"}
    assert (
        "names no module"
        in refused(2, parallel={"tensor": 2, "tensor_plan": missing})["parallel.tensor_plan"]
    )


def pipeline(**more):
    return {"pipeline": 2, "microbatches": 4, **more}


def test_stages_are_those_that_the_engine_cuts():
    assert report(2, parallel=pipeline()).stages == (("flatten", "fc1"), ("relu1", "fc2", "relu2", "fc3"))
    by_hand = [["fl*", "fc1", "relu1", "fc2"], ["relu2", "fc3"]]
    assert report(2, parallel=pipeline(stages=by_hand)).stages[1] == ("relu2", "fc3")


def test_a_pipeline_wants_enough_microbatches_modules_and_an_order():
    assert "1f1b wants at least" in refused(2, parallel=pipeline(microbatches=1))["parallel.microbatches"]
    assert report(2, parallel=pipeline(microbatches=1, schedule="gpipe")).problems == ()
    many = refused(7, parallel={"pipeline": 7, "microbatches": 8})
    assert "7 pipeline stages, but the model has 6 modules" in many["parallel"]

    def without_order(spec, **_):
        return BuiltModel(
            module=nn.Linear(4, 2), layout=Layout(), task="classification", spec={}, input_shape=(4,)
        )

    assert "order" in refused(2, parallel=pipeline(), build_model=without_order)["parallel.pipeline"]


def test_interleaving_wants_two_stages_on_each_rank():
    interleaved = pipeline(schedule="interleaved1f1b")
    assert len(report(2, parallel=interleaved).stages) == 4
    two = [["flatten", "fc1"], ["relu1", "fc2", "relu2", "fc3"]]
    message = refused(2, parallel={**interleaved, "stages": two})["parallel.stages"]
    assert "given 2 stages" in message and "two or more on each rank" in message


def test_a_parameter_tied_across_stages_counts_on_each_of_them():
    def tied(spec, **_):
        module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).to("meta")
        module[2].weight = module[0].weight
        layout = Layout(order=("0", "1", "2"))
        return BuiltModel(module=module, layout=layout, task="classification", spec={}, input_shape=(4,))

    found = report(2, parallel=pipeline(), build_model=tied)
    gradients = next(row.bytes for row in found.memory if row.what == "gradients")
    assert len(found.stages) == 2 and gradients == 4 * (16 + 4)


@pytest.mark.parametrize(
    ("parallel", "share"),
    [
        ({}, 0.0),
        ({"pipeline": 4, "microbatches": 4}, 3 / 7),
        ({"pipeline": 4, "microbatches": 12}, 3 / 15),
        ({"pipeline": 4, "microbatches": 4, "schedule": "interleaved1f1b"}, 3 / 11),
        ({"pipeline": 2, "microbatches": 4, "schedule": "interleaved1f1b", "stages": [["a"]] * 6}, 1 / 13),
    ],
)
def test_the_bubble_is_the_share_that_a_rank_waits(parallel, share):
    assert bubble(config(parallel=parallel)) == pytest.approx(share)


# ── techniques


def prune(**settings):
    return [{"name": "p", "steps": 5, "techniques": [{"name": "pruning.magnitude", **settings}]}]


def test_a_technique_that_matches_nothing_is_refused_with_names_that_there_are():
    message = refused(phases=prune(match="conv*"))["phases.0.techniques.0"]
    assert "matches no parameter with match: conv*" in message
    assert "fc1.weight" in message
    assert report(phases=prune(match="fc1*")).phases[0].techniques == (("pruning.magnitude", 2),)


def test_a_technique_is_matched_against_the_model_that_earlier_ones_have_prepared(monkeypatch):
    from forgepress.compression.registry import techniques

    def add_a_layer(self, model):
        model.register_module("added", nn.Linear(3, 3, device="meta"))

    monkeypatch.setattr(techniques()["pruning.magnitude"], "changes_model", True)
    monkeypatch.setattr(techniques()["pruning.magnitude"], "prepare", add_a_layer)
    assert report(phases=[*prune(match="fc1*"), {**prune(match="added*")[0], "name": "q"}]).problems == ()
    assert refused(phases=prune(match="added*"))


def test_what_needs_numbers_to_prepare_is_noted_and_not_guessed(monkeypatch):
    from forgepress.compression.registry import techniques

    def look_at_values(self, model):
        next(model.parameters()).sum().item()

    monkeypatch.setattr(techniques()["pruning.magnitude"], "changes_model", True)
    monkeypatch.setattr(techniques()["pruning.magnitude"], "prepare", look_at_values)
    found = report(phases=[*prune(), {**prune(match="later*")[0], "name": "q"}])
    assert found.problems == ()
    assert any("not checked" in note for note in found.notes)


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        ({"share": 0.99}, "no more than"),
        ({"kinds": ["heads"]}, "nothing of the kinds heads may be removed"),
        ({"score": "scale"}, "it has no normalisation layer with a scale"),
    ],
)
def test_a_removal_that_could_not_deliver_is_refused_before_the_first_step(technique, message):
    phases = [{"name": "shrink", "steps": 2, "techniques": [{"name": "pruning.structured", **technique}]}]
    (problem,) = report(phases=phases).problems
    assert problem.path == ("phases", 0, "techniques", 0)
    assert message in problem.message


def test_widths_that_the_tensor_axis_would_not_divide_are_refused_by_the_setting_to_mend():
    def problems(multiple):
        technique = {"name": "pruning.structured", "multiple": multiple}
        phases = [{"name": "shrink", "steps": 2, "techniques": [technique]}]
        return report(ranks=4, phases=phases, parallel={"tensor": 4}).problems

    assert problems(8) == ()
    (problem,) = problems(6)
    assert problem.path == ("phases", 0, "techniques", 0)
    assert (
        "widths of fc1 will be multiples of 6, which tensor: 4 does not divide; want multiple"
        in problem.message
    )
    assert "12" in problem.message


def test_the_best_metric_must_be_measured():
    assert (
        "did you mean accuracy?" in refused(evaluate={"best": {"metric": "acuracy"}})["evaluate.best.metric"]
    )
    assert refused(evaluate={"best": {"metric": "loss", "mode": "min"}}) == {}


def test_a_warmup_longer_than_its_phase_is_noted():
    found = report(optimizer={"schedule": {"warmup": 6}})
    assert any("before its warmup of 6" in note for note in found.notes)
    assert report(optimizer={"schedule": {"warmup": 5}}).notes == ()


# ── the report


def test_check_raises_everything_on_one_screen_with_file_and_line(tmp_path):
    text = "model: lenet_300_100\ndata: {source: digits, batch: 1}\nphases:\n  - steps: 5\n"
    (tmp_path / "run.yaml").write_text(text + "    techniques: [{name: pruning.magnitude, match: conv*}]\n")
    run, origins = load_with_origins("run.yaml", ["parallel.replicate=2"])
    with pytest.raises(ConfigError) as caught:
        check(run, 3, origins=origins, load_source=images)
    screen = str(caught.value)
    assert screen.startswith("run cannot run on 3 ranks: it has 3 problems\n")
    for place in ("run.yaml:2  data.batch", "run.yaml:5  phases.0.techniques.0", "parallel\n"):
        assert place in screen


def test_check_returns_the_report_of_a_run_that_can_start():
    assert check(config(), 1, load_source=images) == report()


def test_a_report_is_json_and_a_page(capsys):
    found = report(2, parallel=pipeline(), phases=prune(), optimizer={"schedule": {"warmup": 9}})
    again = json.loads(json.dumps(found.as_json()))
    assert again["parameters"] == WEIGHTS
    assert again["device_bytes"] == sum(row.bytes for row in found.memory if row.where == "device")
    print_report(found)
    page = capsys.readouterr().out
    for text in ("266,610 parameters", "flatten fc1 | relu1", "pruning.magnitude (3)", "note: ", "can start"):
        assert text in page
        assert text in str(found)
    assert "problem:" in str(report(3)) and "can start" not in str(report(3))


def test_the_built_in_digits_are_accepted_for_real():
    found = examine(config(), 1)
    assert found.problems == ()
    assert found.rows is not None and found.rows > 1000
    assert found.columns is not None and found.columns["inputs"].startswith("float32 [1, 8, 8]")
