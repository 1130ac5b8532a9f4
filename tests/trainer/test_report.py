"""The report tells the whole run in one page that refers to nothing outside."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from forgepress.errors import CheckpointError
from forgepress.trainer.report import write_report
from forgepress.trainer.report_charts import Line, line_chart, ticks
from forgepress.trainer.report_series import Band, curves, smoothed, thinned
from forgepress.trainer.summary import write_summary

CONFIG = """name: digits-surgery
seed: 0
model: lenet_300_100
data: {source: digits, batch: 128}
parallel: {engine: native, replicate: 2, shard: 1}
optimizer: {name: adamw, lr: 0.001}
precision: fp32
phases:
- {name: dense, steps: 600}
- name: surgery
  steps: 900
  techniques:
  - {name: pruning.network_surgery, sparsity: 0.95}
- {name: finish, steps: 300, techniques: [{name: pruning.keep_zeros}]}
evaluate: {every: 100, best: {metric: accuracy, mode: max}}
export: [{format: safetensors}, {format: packed}]
"""
PHASES = ((600, "dense"), (1500, "surgery"), (1800, "finish"))


def write_sample_run(folder: Path, layers: int = 3) -> Path:
    """A run folder as a run of 1,800 steps leaves it: noisy loss, a bump when pruning begins, rising sparsity."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(10, 1801, 10):
            for line in _lines(step):
                file.write(json.dumps(line) + "\n")
    write_summary(folder, _summary(layers))
    return folder


def _lines(step: int):
    phase = next(name for end, name in PHASES if step <= end)
    noise = random.Random(step)
    sparsity = (
        0.0 if step <= 600 else min(0.95, 0.95 * (1 - (1 - (step - 600) / 700) ** 3)) if step < 1300 else 0.95
    )
    loss = 0.04 + 2.3 * math.exp(-step / 90) + 0.09 * math.exp(-(((step - 900) / 220) ** 2))
    yield {
        "step": step,
        "phase": phase,
        "kind": "train",
        "loss": loss * noise.uniform(0.6, 1.45),
        "learning_rate": 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 1800)),
        "gradient_norm": loss * noise.uniform(1, 3),
        "samples_per_second": noise.gauss(21_000, 900),
        "data_wait_fraction": noise.uniform(0, 0.03),
        **({"pruning.network_surgery/sparsity": sparsity} if step > 600 else {}),
    }
    if step % 100 == 0:
        accuracy = 0.985 - 0.5 * math.exp(-step / 90) - 0.02 * math.exp(-(((step - 900) / 220) ** 2))
        yield {"step": step, "phase": phase, "kind": "evaluate", "loss": loss * 1.15, "accuracy": accuracy}
    if step in (600, 1500, 1800):
        yield {"step": step, "phase": phase, "kind": "checkpoint"}
        yield {"step": step, "phase": phase, "kind": "phase", "accuracy": 0.98, "metrics": None}


def _summary(layers: int) -> dict:
    names = [
        "fc1.weight",
        "fc2.weight",
        "fc3.weight",
        *(f"blocks.{n}.attention.weight" for n in range(layers - 3)),
    ]
    shapes = [[300, 784], [100, 300], [10, 100], *[[768, 768]] * (layers - 3)]
    sparsity = [0.962, 0.887, 0.41, *(0.99 - 0.01 * (n % 40) for n in range(layers - 3))]

    def case(dense: float) -> dict:
        pair = {"dense": dense, "compressed": dense * 0.99}
        timings = {k: {"median": v, "p10": v * 0.95, "p90": v * 1.2, "rounds": 50} for k, v in pair.items()}
        return {**timings, "speed_up": 1.01}

    note = (
        "no speed-up expected from unstructured zeros on this device (cpu): 95% of the weights are zero, and dense "
        "kernels multiply zeros like any number; the file is what gets smaller"
    )
    cases = {
        "batch 1, 1 thread": case(0.0412),
        "batch 32, 1 thread": case(0.361),
        "batch 1, 2 threads": case(0.0455),
    }
    latency = {"device": "a small processor with two cores", "note": note, "cases": cases}
    artifacts = [("safetensors", 1_068_211), ("packed", 65_932)]
    return {
        "steps": 1800,
        "wall_seconds": 43.7,
        "samples_per_second": 21_034.2,
        "data_wait_fraction": 0.0132,
        "mesh": {"pipeline": 1, "replicate": 2, "shard": 1, "context": 1, "tensor": 1},
        "final_loss": 0.0423,
        "metrics": {"accuracy": 0.9821, "loss": 0.0581},
        "params": {"total": 266_610, "nonzero": 13_722},
        "techniques": [
            {
                "name": "pruning.network_surgery",
                "requested": {"sparsity": 0.95},
                "achieved": {"sparsity": 0.9502, "spliced_weights": 1204},
            },
            {"name": "pruning.keep_zeros", "requested": {"zeros_kept": 1.0}, "achieved": {"zeros_kept": 1.0}},
        ],
        "artifacts": [
            {
                "format": name,
                "path": f"artifacts/{name}",
                "bytes": size,
                "dense_bytes": 1_066_440,
                "ratio": 1_066_440 / size,
                "metrics": {"accuracy": 0.9821, "loss": 0.0581},
                "latency_ms": latency,
            }
            for name, size in artifacts
        ],
        "phases": [
            {"phase": "dense", "step": 600, "metrics": {"accuracy": 0.9843, "loss": 0.0522}},
            {"phase": "surgery", "step": 1500, "metrics": {"accuracy": 0.9809, "loss": 0.0601}},
            {"phase": "finish", "step": 1800, "metrics": {"accuracy": 0.9821, "loss": 0.0581}},
        ],
        "layers": [
            {"name": name, "shape": shape, "sparsity": share}
            for name, shape, share in zip(names, shapes, sparsity, strict=True)
        ],
    }


class Page(HTMLParser):
    """Checks nesting and collects text and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> str:
    return write_report(write_sample_run(tmp_path_factory.mktemp("runs") / "digits-surgery")).read_text()


def test_every_tag_is_closed_where_it_was_opened(sample):
    assert Page(sample).open == []


def test_the_page_refers_to_nothing_outside(sample):
    page = Page(sample)
    assert not [entry for entry in page.attributes if entry[1] in ("src", "href", "srcset", "action")]
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", sample)
    assert len(sample) < 200_000


def test_a_stranger_reads_result_sizes_difference_verdict_and_note(sample):
    text = Page(sample).text
    for words in (
        "16.2 × smaller with 98.21 % accuracy",
        "1.07 MB of dense weights became 65.9 kB on disk",
        "differs by −0.22 points",
        "1.07 MB",
        "65.9 kB",
        "pruning.network_surgery sparsity 95.00 % 95.02 % holds",
        "13,722 of 266,610",
        "no speed-up expected from unstructured zeros",
        "2 (replicate 2)",
        "fc1.weight 300 × 784 96.20 %",
        "artifacts/packed packed 65,932",
        "The share of weights that are exactly zero",
    ):
        assert words in text, words


def test_every_curve_is_drawn_with_the_three_phases_behind_it(sample):
    charts = re.findall(r"<figure.*?</figure>", sample)
    titles = [re.search(r"<figcaption>([^<]*)", chart).group(1).strip() for chart in charts]
    assert titles[:3] == ["Loss", "Accuracy", "Sparsity: weights that are zero"]
    assert {"Learning rate", "Gradient norm", "Samples per second"} < set(titles)
    for chart in charts:
        assert [name for name in ("1 dense", "2 surgery", "3 finish") if name in chart] == [
            "1 dense",
            "2 surgery",
            "3 finish",
        ]


def test_no_point_lies_outside_its_picture(sample):
    for points in re.findall(r'points="([^"]*)"', sample):
        for point in points.split():
            across, down = map(float, point.split(","))
            assert 52 <= across <= 450 and 20 <= down <= 221


def test_names_are_never_taken_as_markup(tmp_path):
    folder = write_sample_run(tmp_path / "run")
    evil = '<img src="x">&'
    values = json.loads((folder / "summary.json").read_text())
    values["layers"][0]["name"] = values["techniques"][0]["name"] = values["artifacts"][0]["path"] = evil
    values["phases"][0]["phase"] = values["dense"]["phase"] = evil
    (folder / "summary.json").write_text(json.dumps(values))
    (folder / "config.yaml").write_text(f"name: '{evil}'\nmodel: '{evil}'\n")
    (folder / "metrics.jsonl").write_text(
        json.dumps({"step": 5, "phase": evil, "kind": "evaluate", evil: 1.0}) + "\n"
    )
    page = Page(write_report(folder).read_text())
    assert not [entry for entry in page.attributes if entry[0] == "img"]
    assert page.open == [] and page.text.count(evil) >= 5


def test_a_technique_that_missed_its_goal_is_the_first_thing_said(tmp_path):
    folder = write_sample_run(tmp_path / "run")
    values = json.loads((folder / "summary.json").read_text())
    values["techniques"][0]["achieved"]["sparsity"] = 0.31
    (folder / "summary.json").write_text(json.dumps(values))
    text = Page(write_report(folder).read_text()).text
    assert text.index("did not reach what was requested") < text.index("Dense model")
    assert "not as requested" in text and "31.00 % differs" in text


def test_steps_with_a_loss_that_is_not_finite_are_named(tmp_path):
    folder = write_sample_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1790, "phase": "finish", "kind": "train", "loss": null}\n')
    assert "not a finite number at 1 logged steps (first: 1,790)" in write_report(folder).read_text()


def test_a_run_without_export_evaluation_techniques_or_metrics_still_gets_a_page(tmp_path):
    (tmp_path / "run").mkdir()
    values = {**_summary(3), "metrics": {}, "techniques": [], "artifacts": [], "phases": [], "layers": []}
    write_summary(tmp_path / "run", values)
    page = Page(write_report(tmp_path / "run").read_text())
    assert page.open == [] and "Trained to a loss of 0.0423" in page.text and "not exported" in page.text


def test_many_layers_are_folded(tmp_path):
    text = write_report(write_sample_run(tmp_path / "run", layers=90)).read_text()
    assert "50 more layers" in text and text.count("attention.weight") == 87


def test_a_run_that_has_not_ended_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="finish or resume"):
        write_report(tmp_path)


def test_a_step_logged_twice_counts_once_with_its_later_value():
    lines = [{"step": 1, "kind": "train", "loss": 9.0}, {"step": 1, "kind": "train", "loss": 2.0}]
    assert curves(lines).train["loss"] == [(1.0, 2.0)]


def test_thinning_keeps_ends_and_spikes():
    points = [(float(step), 50.0 if step == 7777 else math.sin(step)) for step in range(20_000)]
    kept = thinned(points)
    assert len(kept) <= 402 and kept[0] == points[0] and kept[-1] == points[-1]
    assert (7777.0, 50.0) in kept and kept == sorted(kept)


def test_smoothing_follows_a_straight_fall_without_lag_and_removes_noise():
    straight = [(float(step), 100.0 - step) for step in range(100)]
    assert [value for _, value in smoothed(straight)] == pytest.approx([value for _, value in straight])
    noisy = [(float(step), float(step % 2)) for step in range(1000)]
    assert all(abs(value - 0.5) < 0.02 for _, value in smoothed(noisy)[50:-50])
    assert smoothed([]) == [] and smoothed([(1.0, 2.0)]) == [(1.0, 2.0)]


def test_a_logarithmic_axis_has_marks_inside_its_range_only():
    points = [(float(step), 10.0 ** (-step / 4)) for step in range(8)]  # 1 down to 0.018
    drawn = line_chart([Line(label="x", points=points, style="hot")], [], name="x", title="X")
    marks = [float(text) for text in re.findall(r'text-anchor="end">([\d.]+)<', drawn)]
    assert "log scale" in drawn and marks[:6] == [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.03, 0.061), (-5, 17), (3, 3), (0, 0), (1e-6, 9e-6), (0, 1.7e6)]
)
def test_ticks_are_few_round_and_cover_the_range(low, high):
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 8 or low == high
    assert marks[0] <= low + 1e-9 and marks[-1] >= high - 1e-9
    assert len({f"{mark:.4g}" for mark in marks}) == len(marks)


def test_a_learning_rate_is_drawn_on_a_linear_axis_however_small_it_ends():
    points = [(0.0, 1e-3), (1.0, 1e-8)]
    lines = [Line(label="x", points=points, style="hot")]
    assert "log scale" not in line_chart(lines, [], name="learning_rate", title="X")
    assert "log scale" in line_chart(lines, [], name="loss", title="X")


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [1e-9, 1.0], [-1.0, 1.0], [1e12, 3e12]])
def test_odd_ranges_are_drawn_inside_the_picture(values):
    points = [(float(step), value) for step, value in enumerate(values)]
    bands = [Band(name="only", start=0, end=0)]
    drawn = line_chart([Line(label="x", points=points, style="hot", dots=True)], bands, name="x", title="X")
    assert "nan" not in drawn
    for point in re.search(r'points="([^"]*)"', drawn).group(1).split():
        assert 20 <= float(point.split(",")[1]) <= 221
