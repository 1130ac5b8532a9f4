"""The typed value itself: defaults, merging of optimizers, dumps, differences, the schema."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from forgepress.trainer.config import RunConfig
from forgepress.trainer.config_diff import ABSENT, diff
from forgepress.trainer.config_schema import json_schema
from forgepress.trainer.config_yaml import dump, parse
from pydantic import ValidationError


def config(**changes):
    base = {
        "model": "lenet_300_100",
        "data": {"source": "digits", "batch": 128},
        "phases": [{"name": "dense", "steps": 500}],
    }
    return RunConfig.model_validate({**base, **changes})


def messages(**changes):
    with pytest.raises(ValidationError) as caught:
        config(**changes)
    return str(caught.value)


def test_top_level_words_are_exactly_those_of_the_design():
    words = "name seed model data parallel optimizer precision phases evaluate checkpoint tracking export"
    assert sorted(RunConfig.model_fields) == sorted(words.split())


def test_a_teachers_answers_are_not_kept_for_pictures_that_change_in_every_epoch():
    technique = {"name": "distillation.logits", "teacher": "lenet_300_100"}
    data = {"source": "digits", "batch": 128, "augment": {"flip": True}}
    phases = [{"name": "distil", "epochs": 2, "techniques": [{**technique, "cache": True}]}]
    assert "a kept answer would be to another picture" in messages(data=data, phases=phases)
    assert config(phases=phases)
    assert config(data=data, phases=[{"epochs": 2, "techniques": [technique]}])


def test_a_config_cannot_change():
    with pytest.raises(ValidationError, match="frozen"):
        config().seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config().data.batch = 1


def test_importing_the_config_imports_no_torch_and_warns_of_nothing():
    code = "import sys, forgepress.trainer.config, forgepress.trainer.config_file; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    assert done.returncode == 0, done.stderr


def test_a_value_of_another_type_is_refused_even_where_it_could_be_converted():
    assert "data.batch" in messages(data={"source": "digits", "batch": "128"})
    assert "seed" in messages(seed=True)
    assert "seed" in messages(seed=1.0)
    assert "optimizer.lr" in messages(optimizer={"lr": "0.1"})
    assert "optimizer.lr" in messages(optimizer={"lr": float("nan")})


def test_a_phase_without_a_name_is_called_by_its_number_and_names_must_differ():
    assert [p.name for p in config(phases=[{"steps": 1}, {"epochs": 2}]).phases] == ["phase-0", "phase-1"]
    assert "a second time" in messages(phases=[{"name": "a", "steps": 1}, {"name": "a", "steps": 1}])


@pytest.mark.parametrize("length", [{}, {"steps": 1, "epochs": 1}])
def test_a_phase_has_either_steps_or_epochs(length):
    assert "either steps or epochs" in messages(phases=[length])


def test_a_phase_replaces_only_the_optimizer_keys_that_it_gives():
    run = config(
        optimizer={"lr": 0.5, "weight_decay": 0.1, "schedule": {"name": "cosine", "warmup": 7}},
        phases=[{"steps": 1}, {"steps": 1, "optimizer": {"lr": 0.25, "schedule": {"warmup": 3}}}],
    )
    assert run.optimizer_of(0) == run.optimizer
    changed = run.optimizer_of(1)
    assert (changed.lr, changed.weight_decay) == (0.25, 0.1)
    assert (changed.schedule.name, changed.schedule.warmup) == ("cosine", 3)


def test_a_phase_with_another_optimizer_starts_from_that_ones_own_defaults():
    run = config(
        optimizer={"name": "sgd", "lr": 0.5, "momentum": 0.9, "nesterov": True},
        phases=[{"steps": 1, "optimizer": {"name": "adam"}}],
    )
    assert run.optimizer_of(0).momentum == 0.0
    assert run.optimizer_of(0).lr == 0.5


def test_optimizer_keys_that_would_do_nothing_are_refused():
    assert "adamw has no momentum" in messages(optimizer={"momentum": 0.9})
    assert "sgd has no betas" in messages(optimizer={"name": "sgd", "betas": [0.5, 0.9]})
    assert "want momentum above 0" in messages(optimizer={"name": "sgd", "nesterov": True})


def test_degrees_multiply_and_data_ranks_are_replicate_times_shard():
    parallel = config(parallel={"replicate": 2, "shard": 3, "tensor": 5, "pipeline": 7}).parallel
    assert (parallel.ranks, parallel.data_ranks) == (210, 6)
    assert list(parallel.degrees) == ["pipeline", "replicate", "shard", "context", "tensor"]


def test_the_run_folder_is_the_name_in_the_checkpoint_folder():
    assert config(name="mnist").run_folder == Path("runs/mnist")
    assert config(name="m", checkpoint={"folder": "deep/er"}).run_folder == Path("deep/er/m")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "sp ace"])
def test_a_name_that_would_leave_the_folder_is_refused(name):
    assert "name" in messages(name=name)


def test_the_data_spec_is_plain_and_has_no_empty_keys():
    run = config(data={"source": {"text": "f.txt", "length": 8}, "batch": 4, "transform": {"mean": [0.5]}})
    assert run.data.spec() == {
        "source": {"text": "f.txt", "length": 8},
        "batch": 4,
        "tail": "keep",
        "shuffle": True,
        "prefetch": 2,
        "transform": {"mean": [0.5], "flatten": False},
    }


def test_the_kinds_of_sources_are_those_that_can_be_loaded():
    from forgepress.dataloading.load import KINDS
    from forgepress.trainer.config_values import SOURCE_KINDS

    assert {kind: others for kind, others in SOURCE_KINDS.items() if kind != "name"} == KINDS


@pytest.mark.parametrize(
    "source", ["digits", {"idx": "d"}, {"csv": ["a.csv", "b.csv"]}, {"text": {"train": "a"}}]
)
def test_sources_that_can_be_loaded_are_accepted_as_they_are(source):
    assert config(data={"source": source, "batch": 1}).data.source == source


def test_sources_that_cannot_be_loaded_are_refused_at_their_key():
    assert "exactly one of" in messages(data={"source": {"idx": "a", "text": "b"}, "batch": 1})
    assert "did you mean length?" in messages(data={"source": {"text": "a", "lenght": 3}, "batch": 1})
    assert "want a name such as digits" in messages(data={"source": 3, "batch": 1})


def test_models_have_exactly_one_kind_and_a_factory_names_a_function():
    assert config(model={"name": "gpt", "layers": 2}).model == {"name": "gpt", "layers": 2}
    assert "exactly one of" in messages(model={"layers": 2})
    assert "package.module:function" in messages(model={"factory": "no_colon"})
    assert "unknown key" in messages(model={"timm": "resnet18", "pretraind": True})


def test_export_names_are_short_for_formats():
    assert [one.format for one in config(export=["packed", {"format": "safetensors"}]).export] == [
        "packed",
        "safetensors",
    ]


def test_techniques_are_checked_by_their_dataclass_and_built_with_their_settings():
    run = config(phases=[{"steps": 1, "techniques": [{"name": "pruning.magnitude", "sparsity": 0.75}]}])
    technique = run.phases[0].techniques[0]
    assert technique.settings == {"sparsity": 0.75}
    assert technique.build().settings()["sparsity"] == 0.75


AWKWARD = {
    "factory": "a.b:c",
    "args": {
        "number as text": "1e-3",
        "date as text": "2020-01-01",
        "no as text": "no",
        "null as text": "null",
        "literal": "${keep}",
        "backslash": "\\${x} \\\\${y} ${",
        "small": 1e-12,
        "list": [1, 2.0, None, True, "x: y"],
        "ünïcode": "→",
    },
}


def test_every_config_survives_its_own_yaml(tmp_path):
    run = config(
        name="again",
        model=AWKWARD,
        optimizer={"lr": 1e-7, "betas": [0.5, 0.75]},
        parallel={"stages": [["a*"], ["b", "c"]], "tensor_plan": {"*.up": "column"}},
        phases=[
            {"steps": 3, "optimizer": {"lr": 1.0}},
            {"epochs": 1, "techniques": [{"name": "pruning.magnitude", "match": ["fc*", "!fc3*"]}]},
        ],
        export=["packed"],
        tracking={"wandb": {"project": "p", "tags": ["x"]}},
    )
    file = tmp_path / "config.yaml"
    file.write_text(run.to_yaml(), encoding="utf-8")
    again = RunConfig.load(file)
    assert again == run
    assert again.model == AWKWARD
    assert again.phases[0].optimizer is not None
    assert again.phases[0].optimizer.model_fields_set == {"lr"}
    assert again.to_yaml() == run.to_yaml()


def test_scientific_notation_is_a_number_and_text_like_it_is_quoted():
    assert parse("a: 1e-3\nb: '1e-3'\nc: -2E+5\nd: 1.", "x").value == {
        "a": 1e-3,
        "b": "1e-3",
        "c": -2e5,
        "d": 1.0,
    }
    assert parse(dump({"a": "1e-3", "b": 1e-3}), "x").value == {"a": "1e-3", "b": 1e-3}


def test_differences_are_found_at_any_depth_and_named_as_overrides_are():
    before = config()
    after = config(
        model={"name": "gpt"}, phases=[{"name": "dense", "steps": 9}, {"name": "more", "steps": 1}]
    )
    assert diff(before, config()) == ()
    found = {str(difference) for difference in diff(before, after)}
    assert "phases.0.steps: 500 → 9" in found
    assert "model: 'lenet_300_100' → {'name': 'gpt'}" in found
    assert [d.before for d in diff(before, after, under=["phases"])] == [500, ABSENT]


def test_the_schema_has_every_technique_with_its_fields_and_the_models():
    from forgepress.compression.registry import techniques

    schema = json_schema()
    entries = schema["$defs"]["PhaseConfig"]["properties"]["techniques"]["items"]["oneOf"]
    by_name = {entry["properties"]["name"]["const"]: entry for entry in entries}
    assert set(by_name) == set(techniques())
    magnitude = by_name["pruning.magnitude"]
    fields = {field.name for field in dataclasses.fields(techniques()["pruning.magnitude"])}
    assert set(magnitude["properties"]) == {"name", *fields}
    assert "first step" in magnitude["properties"]["begin"]["description"].lower()
    assert "lenet_300_100" in schema["properties"]["model"]["anyOf"][0]["enum"]
    assert sorted(schema["required"]) == ["data", "model", "phases"]


def test_every_definition_of_the_schema_is_used_and_every_reference_resolves():
    schema = json_schema()
    text = json.dumps(schema)
    for name in schema["$defs"]:
        assert f'"#/$defs/{name}"' in text
    assert text.count('"$ref"') == sum(text.count(f'"#/$defs/{name}"') for name in schema["$defs"])
