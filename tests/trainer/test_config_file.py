"""Files, overrides and interpolation; every error with its place, all of them on one screen."""

import re

import pytest
from forgepress.errors import ConfigError
from forgepress.trainer.config import RunConfig
from forgepress.trainer.config_file import load_config, load_with_origins

GOOD = """\
model: lenet_300_100
data:
  source: digits
  batch: 128
phases:
  - {name: dense, steps: 500}
  - name: prune
    epochs: 2
    techniques:
      - {name: pruning.magnitude, sparsity: 0.8}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that places read file.yaml:3 in every test

    def put(text, name="run.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return put


def screen(files, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(files, overrides)
    return str(caught.value)


def problems(text):
    """(place and path, message) of each problem on a screen."""
    lines = text.splitlines()[1:]
    heads = [index for index, line in enumerate(lines) if re.match(r"  \S", line)]
    return [(lines[i].strip(), lines[i + 1].strip()) for i in heads]


def test_a_run_is_called_after_its_file_unless_it_has_a_name(write):
    assert load_config(write(GOOD, "mnist.yaml")).name == "mnist"
    assert load_config(write(GOOD + "name: own\n", "mnist.yaml")).name == "own"
    assert RunConfig.load(write(GOOD, "mnist.yaml"), overrides=["name=said"]).name == "said"


def test_later_files_win_mappings_merge_and_lists_are_replaced(write):
    first = write(GOOD, "base.yaml")
    second = write("data: {batch: 64}\nphases: [{name: only, steps: 1}]\n", "small.yaml")
    run = load_config([first, second])
    assert (run.name, run.data.source, run.data.batch) == ("small", "digits", 64)
    assert [phase.name for phase in run.phases] == ["only"]


def test_an_empty_file_adds_nothing(write):
    assert load_config([write(GOOD, "a.yaml"), write("# nothing\n", "b.yaml")]).data.batch == 128


def test_overrides_are_read_as_yaml_and_reach_into_lists(write):
    run = load_config(
        write(GOOD),
        [
            "phases.1.techniques.0.sparsity=0.9",
            "optimizer.lr=1e-2",
            "optimizer.betas=[0.5, 0.6]",
            "data.transform={scale: 0.5}",
            "phases.2={name: more, steps: 3}",
            "phases[0].steps=7",
            "evaluate.batch=",
        ],
    )
    assert run.phases[1].techniques[0].settings["sparsity"] == 0.9
    assert (run.optimizer.lr, run.optimizer.betas) == (0.01, (0.5, 0.6))
    assert run.data.transform.scale == 0.5
    assert [(p.name, p.steps) for p in run.phases] == [("dense", 7), ("prune", None), ("more", 3)]
    assert run.evaluate.batch is None


def test_an_override_with_an_equals_sign_in_its_value_is_cut_at_the_first(write):
    run = load_config(write(GOOD), ["model={factory: 'a:b', args: {rule: 'x=y'}}"])
    assert run.model == {"factory": "a:b", "args": {"rule": "x=y"}}


def test_interpolation_sees_merged_files_and_overrides(write):
    text = GOOD + "seed: 5\nevaluate: {every: '${seed}', batch: '${data.batch}'}\n"
    run = load_config(write(text), ["seed=6"])
    assert (run.evaluate.every, run.evaluate.batch) == (6, 128)


def test_anchors_and_merge_keys_work_and_keep_their_lines(write):
    text = GOOD.replace(
        "  - {name: dense, steps: 500}",
        "  - &base {name: dense, steps: 500, optimizer: {lr: 0.1}}\n  - {<<: *base, name: b}",
    )
    run = load_config(write(text))
    assert (run.phases[1].name, run.phases[1].steps) == ("b", 500)
    found = problems(screen(write(text.replace("lr: 0.1", "lr: -0.1"))))
    assert found == [
        ("run.yaml:6  phases.0.optimizer.lr", "given -0.1; want 0.0 or more"),
        ("run.yaml:6  phases.1.optimizer.lr", "given -0.1; want 0.0 or more"),
    ]


BAD = """\
nam: x
model: {nme: gpt}
data:
  source: {txt: a}
  batc: 128
  shuffle: true
  shuffle: "yes"
  transform: [1]
optimiser: {lr: 1}
optimizer: {name: adm, lr: -1, betas: [0.9], schedule: {warmup: 1.5}}
phases:
  - steps: 500
    techniques:
      - {name: pruning.magnitud, sparsity: 0.8}
      - {name: pruning.magnitude, sparsity: 1.5}
      - {name: pruning.magnitude, sparsit: 0.5}
      - {name: pruning.magnitude, sparsity: high}
      - {sparsity: 0.5}
  - {epoch: 2}
export: [safetensor]
batch: 3
evaluate: {every: "${sed}"}
tracking: {wandb: {api_key: 1}}
parallel: {replicate: 0, microbatches: true}
"""


def test_all_problems_come_at_once_each_with_place_path_given_wanted_and_nearest(write):
    text = screen(write(BAD, "bad.yaml"), "precision=fp8", "phases.9.steps=3", "nothing", "seed=[1")
    assert text.startswith("bad.yaml has 29 problems\n")
    found = dict(problems(text))
    expected = {
        "bad.yaml:1  nam": "unknown key; did you mean name?",
        "bad.yaml:2  model": "given the keys nme; want exactly one of name, .*did you mean name",
        "bad.yaml:3  data.batch": "required, but not given",
        "bad.yaml:4  data.source": "given the keys txt; .*did you mean text",
        "bad.yaml:5  data.batc": "unknown key; did you mean batch?",
        "bad.yaml:7  data.shuffle": "given twice, first in line 6",
        "bad.yaml:8  data.transform": r"given \[1\]; want a mapping",
        "bad.yaml:9  optimiser": "unknown key; did you mean optimizer?",
        "bad.yaml:10  optimizer.name": "given 'adm'; want one of sgd, adam, adamw; did you mean adam",
        "bad.yaml:10  optimizer.lr": "given -1; want 0.0 or more",
        "bad.yaml:10  optimizer.betas.1": "required",
        "bad.yaml:10  optimizer.schedule.warmup": "given 1.5; want a whole number",
        "bad.yaml:14  phases.0.techniques.0.name": "'pruning.magnitud'; did you mean pruning.magnitude",
        "bad.yaml:15  phases.0.techniques.1.sparsity": "sparsity=1.5: want a share from 0 to below 1",
        "bad.yaml:16  phases.0.techniques.2.sparsit": "no such setting; did you mean sparsity",
        "bad.yaml:17  phases.0.techniques.3.sparsity": "sparsity='high': want a share",
        "bad.yaml:18  phases.0.techniques.4.name": "required",
        "bad.yaml:19  phases.1.epoch": "unknown key; did you mean epochs?",
        "bad.yaml:20  export.0.format": "want one of safetensors, packed, .*; did you mean safetensors",
        "bad.yaml:21  batch": "unknown key; did you mean data.batch?",
        "bad.yaml:22  evaluate.every": r"given '\$\{sed\}'; the config has no key sed",
        "bad.yaml:23  tracking.wandb.project": "required",
        "bad.yaml:23  tracking.wandb.api_key": "unknown key",
        "bad.yaml:24  parallel.replicate": "given 0; want 1 or more",
        "bad.yaml:24  parallel.microbatches": "given true; want a whole number",
        "override precision=fp8  precision": "given 'fp8'; want one of fp32, bf16, fp16",
        "override phases.9.steps=3  phases.9.steps": "2 entries; want an index from 0 to 2",
        "override nothing": "want key=value",
        "override seed=[1": "not valid YAML",
    }
    for head, message in expected.items():
        assert re.search(message, found.get(head, "")), f"{head}: {found.get(head)!r}"
    assert set(found) == set(expected)


def test_problems_come_in_reading_order_with_overrides_last(write):
    heads = [head for head, _ in problems(screen(write(BAD, "bad.yaml"), "precision=fp8"))]
    lines = [int(match[1]) for head in heads if (match := re.match(r"bad.yaml:(\d+)", head))]
    assert lines == sorted(lines)
    assert heads[-1].startswith("override")


def test_a_problem_in_a_merged_file_names_the_file_that_set_the_key_last(write):
    first = write(GOOD.replace("128", "0"), "a.yaml")
    assert problems(screen([first, write("data: {tail: cut}\n", "b.yaml")])) == [
        ("a.yaml:4  data.batch", "given 0; want 1 or more"),
        ("b.yaml:1  data.tail", "given 'cut'; want one of keep, drop, pad, wrap"),
    ]


@pytest.mark.parametrize(
    ("text", "head", "message"),
    [
        ("a: 1\n\tb: 2\n", "run.yaml:2", "given a tab; want spaces"),
        ("data: {batch: 3\nseed: 1\n", "run.yaml:2", "not valid YAML"),
        ("model: [a\n", "run.yaml:2", "not valid YAML"),
        ("model: a\nx: !!python/object/apply:os.system [ls]\n", "run.yaml:2", "given the tag !!python"),
        ("- a\n- b\n", "run.yaml", "want a mapping with model, data"),
        ("1: a\n", "run.yaml:1  1", "want text: quote it"),
        ("a: &a [*a]\n", "run.yaml", "alias of itself"),
    ],
)
def test_text_that_is_no_config_is_refused_with_its_line(write, text, head, message):
    found = problems(screen(write(text)))
    assert any(h == head and message in m for h, m in found), found


def test_aliases_of_aliases_are_refused_before_they_fill_the_memory(write):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "aliases of aliases" in screen(write("\n".join(lines) + "\n"))


def test_a_missing_file_is_named_with_those_that_are_there_and_other_files_are_read_too(write):
    write(GOOD, "mnist.yaml")
    text = screen(["minst.yaml", write("a: 1\n\tb: 2\n", "tab.yaml")])
    assert [head for head, _ in problems(text)] == ["minst.yaml", "tab.yaml:2"]
    assert "no such file; in that folder: mnist.yaml" in text


def test_a_file_that_is_no_text_is_refused(write, tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in screen("run.yaml")
    assert "cannot be read" in screen(str(tmp_path))


def test_a_key_missing_from_a_list_that_a_later_file_replaced_is_looked_for_there(write):
    first, second = write(GOOD, "a.yaml"), write("seed: 1\nphases:\n  - {name: x}\n", "b.yaml")
    assert problems(screen([first, second]))[0][0] == "b.yaml:3  phases.0"
    assert (
        load_with_origins([first, write("seed: 1\nphases:\n  - {name: x, epochs: 1}\n", "b.yaml")])[1].place(
            ("phases", 0, "steps")
        )
        == "b.yaml:3"
    )


def test_what_is_left_open_or_refers_to_itself_is_refused(write):
    text = GOOD + "seed: '${precision}'\nprecision: '${seed}'\nname: '???'\n"
    found = problems(screen(write(text)))
    assert [head for head, _ in found] == ["run.yaml:11  seed", "run.yaml:12  precision", "run.yaml:13  name"]
    assert "Recursive" in found[0][1]
    assert "want a value" in found[2][1]


def test_an_override_below_a_text_says_to_set_it_as_a_whole(write):
    assert "set model as a whole, for example model={layers: …}" in screen(write(GOOD), "model.layers=3")


def test_a_problem_caused_by_an_override_names_the_override_also_below_it(write):
    whole = "phases.1.techniques.0={name: pruning.magnitude, sparsity: 2.0}"
    assert problems(screen(write(GOOD), whole))[0][0] == f"override {whole}  phases.1.techniques.0.sparsity"


def test_origins_say_where_a_key_was_written_last(write):
    _, origins = load_with_origins([write(GOOD)], ["phases.0.steps=3"])
    assert origins.place(("phases", 0, "steps")) == "override phases.0.steps=3"
    assert origins.place(("phases", 1, "epochs")) == "run.yaml:8"
    assert origins.place(("phases", 1, "optimizer", "lr")) == "run.yaml:7"  # not written: what is around it
    assert origins.place(("tracking",)) == "run.yaml"
