"""Points of a sweep, that each runs once, and what is made of their results."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from forgepress.errors import ConfigError
from forgepress.launch import sweep
from forgepress.launch.cli import main
from forgepress.launch.sweep_report import compare, metrics_of, pareto, text_table, write_results

# Stands for `forgepress train`: leaves what a run leaves, and counts how often it was started.
TRAIN = """
import json, pathlib, sys
folder, value = pathlib.Path(sys.argv[1]), float(sys.argv[2])
with open(folder.parent / "started", "a") as file: file.write(folder.name + "\\n")
line = {"kind": "start", "session": "a", "at": "2026-01-01T00:00:00", "hosts": []}
end = {"kind": "end", "session": "a", "state": "failed" if value > 2 else "finished", "reason": "too much"}
(folder / "history.jsonl").write_text(json.dumps(line) + "\\n" + json.dumps(end) + "\\n")
sys.exit(1) if value > 2 else None
summary = {"metrics": {"accuracy": value / 4}, "artifacts": [{"bytes": int(100 * value)}]}
(folder / "summary.json").write_text(json.dumps(summary))
"""


def test_lists_and_ranges_are_axes_and_single_values_are_not():
    words = ["a.yaml", "lr=1e-3,3e-4", "s=range(0.5,0.95,0.15)", "n=range(1,3,1)", "betas=[0.9,0.99]", "x=1"]
    fixed, axes = sweep.split_axes([*words, "m={a: 1, b: 2}", "t='1,2'"])
    assert fixed == ["a.yaml", "betas=[0.9,0.99]", "x=1", "m={a: 1, b: 2}", "t='1,2'"]
    assert [axis.values for axis in axes] == [
        ("1e-3", "3e-4"),
        ("0.5", "0.65", "0.8", "0.95"),
        ("1", "2", "3"),
    ]
    points = sweep.grid(axes[:2])
    assert len(points) == 8 and points[1].settings == {"lr": "1e-3", "s": "0.65"}
    assert points[1].words(Path("runs/x"))[-2:] == ["name=point-1", "checkpoint.folder=runs/x"]
    with pytest.raises(ConfigError, match="a grid needs a step"):
        sweep.grid(sweep.split_axes(["lr=range(0,1)"])[1])
    for wrong in ("lr=range(1,0)", "lr=range(a,b)", "lr=logrange(0,1)", "lr=range(1)"):
        with pytest.raises(ConfigError, match=r"^lr"):
            sweep.split_axes([wrong])


def test_random_points_are_the_same_for_a_seed_inside_their_bounds_and_not_twice():
    _, axes = sweep.split_axes(["lr=logrange(1e-4,1e-1)", "w=range(0,1)", "k=a,b"])
    points = sweep.drawn(axes, 20, seed=1)
    assert points == sweep.drawn(axes, 20, seed=1) != sweep.drawn(axes, 20, seed=2)
    assert all(1e-4 <= float(p.settings["lr"]) <= 0.1 and 0 <= float(p.settings["w"]) <= 1 for p in points)
    assert sum(float(p.settings["lr"]) < 3e-3 for p in points) >= 5  # by its logarithm
    assert len(sweep.drawn(axes[2:], 10)) == 2


def test_each_point_runs_once_and_a_sweep_that_was_stopped_goes_on_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def start(folder: Path, config: object, point: sweep.Point) -> "subprocess.Popen[bytes]":
        (folder / point.name).mkdir(parents=True, exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", TRAIN, str(folder / point.name), point.settings["x"]])

    monkeypatch.setattr(sweep, "_start", start)
    points = sweep.grid(sweep.split_axes(["x=range(1,3,1)"])[1])
    said: list[str] = []
    folder = tmp_path / "s"
    sweep.keep_points(folder, ["a.yaml"], points)
    assert sweep.run_points(folder, ["a.yaml"], points[:1], at_once=2, say=said.append) == 0
    assert sweep.run_points(folder, ["a.yaml"], points, at_once=2, say=said.append) == 1
    assert sweep.run_points(folder, ["a.yaml"], points, at_once=2, say=said.append) == 0
    assert sorted((folder / "started").read_text().split()) == ["point-0", "point-1", "point-2"]
    assert "3 points, 1 of them done; 2 at a time" in said and any(
        "exit code 1: too much" in line for line in said
    )
    with pytest.raises(ConfigError, match="holds another sweep"):
        sweep.keep_points(folder, ["b.yaml"], points)
    lines = sweep.results(folder, points)
    assert [line["state"] for line in lines] == ["finished", "finished", "failed"]
    assert (lines[1]["accuracy"], lines[1]["bytes"]) == (0.5, 200) and metrics_of(lines) == [
        "accuracy",
        "bytes",
    ]


def test_the_table_the_csv_and_the_plot_show_every_point(tmp_path: Path):
    lines = [
        {"point": 0, "state": "finished", "accuracy": 0.9, "bytes": 100},
        {"point": 1, "state": "finished", "accuracy": 0.8, "bytes": 200},
        {"point": 2, "state": "finished", "accuracy": 0.95, "bytes": 300},
        {"point": 3, "state": "failed"},
    ]
    assert pareto(lines, ["accuracy", "bytes"]) == [0, 2]
    written = write_results(tmp_path, lines)
    assert [path.name for path in written] == ["results.csv", "pareto.svg"]
    assert len(list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))) == 4
    svg = ElementTree.parse(tmp_path / "pareto.svg").getroot()
    dots = [element for element in svg.iter() if element.tag.endswith("circle")]
    assert len(dots) == 3 and sum(dot.get("fill") == "#c40" for dot in dots) == 2
    assert text_table(lines).splitlines()[0].split() == ["point", "state", "accuracy", "bytes"]


def test_runs_are_compared_by_the_settings_that_differ_and_their_results(tmp_path: Path):
    for name, rate, accuracy in (("a", 0.1, 0.5), ("b", 0.2, 0.75)):
        (tmp_path / name).mkdir()
        config = {"name": name, "optimizer": {"lr": rate, "name": "sgd"}, "phases": [{"steps": 3}]}
        (tmp_path / name / "config.yaml").write_text(json.dumps(config))
        summary = {"steps": 3, "final_loss": 1.5, "metrics": {"accuracy": accuracy}, "artifacts": []}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    rows = [line.split() for line in compare([tmp_path / "a", tmp_path / "b"]).splitlines()]
    assert rows[:2] == [["a", "b"], ["optimizer.lr", "0.1", "0.2"]]
    assert ["→", "accuracy", "0.5", "0.75"] in rows and not any(row[0] == "steps" for row in rows)
    with pytest.raises(ConfigError, match="no run folder"):
        compare([tmp_path])


def test_the_command_lists_points_and_refuses_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    demo = ["sweep", "demo", "phases=[{name: a, steps: 2}]", f"checkpoint.folder={tmp_path}"]
    assert main([*demo, "optimizer.lr=1e-3,3e-4", "--ranks", "2", "--dry-run"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()][2] == ["1", "3e-4"]
    assert main([*demo, "--ranks", "2"]) == 2 and "nothing to sweep" in capsys.readouterr().err
    assert main([*demo, "seed=1,2"]) == 2 and "give --ranks 2" in capsys.readouterr().err
    assert (
        main([*demo, "optimizer.lr=1,-1", "--ranks", "2"]) == 2 and "optimizer.lr" in capsys.readouterr().err
    )
