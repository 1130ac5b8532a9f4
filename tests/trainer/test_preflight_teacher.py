"""`forgepress check` of teachers: are they there, do they fit, how much of them does a rank hold."""

import pytest
from forgepress.tests.checked_run import WEIGHTS, report

TEACHER = {"name": "lenet_300_100", "hidden": [40, 28]}
GPT = {"name": "gpt", "vocabulary": 10, "context": 8}
ELEMENTS = 784 * 40 + 40 + 40 * 28 + 28 + 28 * 10 + 10


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def looked_at(ranks: int = 1, name: str = "logits", parallel: dict | None = None, **settings):
    technique = {"name": f"distillation.{name}", "teacher": TEACHER, **settings}
    phases = [{"name": "dense", "epochs": 1}, {"name": "distil", "epochs": 1, "techniques": [technique]}]
    return report(ranks, phases=phases, parallel=parallel or {})


def refused(*args, **settings) -> str:
    (problem,) = looked_at(*args, **settings).problems
    assert problem.path[:4] == ("phases", 1, "techniques", 0)
    return problem.message


def teacher_bytes(found) -> int:
    assert found.problems == ()
    (row,) = [row for row in found.memory if row.what == "teacher"]
    return row.bytes


def test_the_teachers_memory_is_in_the_table_as_it_is_cut():
    assert teacher_bytes(looked_at()) == 4 * ELEMENTS
    half = teacher_bytes(looked_at(2, parallel={"shard": 2}))
    assert 2 * ELEMENTS <= half <= 2 * ELEMENTS + 4 * 20
    stages = looked_at(2, parallel={"pipeline": 2, "microbatches": 2})
    assert teacher_bytes(stages) == 4 * (784 * 40 + 40)
    assert teacher_bytes(looked_at(teacher={"phase": "dense"})) == 4 * WEIGHTS


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"teacher": {"phase": "distil"}},
            "want the name of a phase before this one; earlier phases are dense",
        ),
        ({"teacher": {"artifact": "nowhere"}}, "there is no artifact.json in it"),
        ({"teacher": {"name": "lenet_300_10"}}, "did you mean 'lenet_300_100'"),
        ({"teacher": {"phase": "dense", "seed": 3}}, "unknown key 'seed' beside phase"),
        ({"teacher": None}, "no teacher; want teacher"),
        ({"teacher": {**TEACHER, "classes": 12}}, r"the student gives logits [2, 10], the teacher [2, 12]"),
        ({"top_k": 10}, "top_k=10, but the teacher has 10 classes"),
    ],
)
def test_a_teacher_that_is_not_there_or_does_not_fit_is_refused(settings, said):
    assert said in refused(**settings)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"relu9": "relu1"}, "the student has no module 'relu9'; it has flatten, fc1"),
        ({"relu1": "fc9"}, "the teacher has no module 'fc9'"),
    ],
)
def test_mapped_modules_must_exist(layers, said):
    assert said in refused(name="features", layers=layers)


def test_a_module_whose_features_the_tensor_axis_divides_is_refused_by_name():
    cut = {"tensor": 2}
    for layers, who in (
        ({"relu1": "relu2"}, "student's module 'relu1'"),
        ({"relu2": "relu1"}, "teacher's module 'relu1'"),
    ):
        message = refused(2, "features", cut, layers=layers)
        assert "parallel.tensor=2 divides the features" in message and who in message
    for theirs in (
        "fc2",
        "fc1",
    ):  # whole after the row-divided layer; and the divided layer's own output is gathered
        assert looked_at(2, "features", cut, layers={"relu2": theirs}).problems == ()
    assert "name the module that comes next" in refused(2, "features", cut, layers={"fc2": "relu2"})
