"""Points of a sweep, that each runs once, and what is made of their results."""

import csv
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from forgepress.errors import ConfigError
from forgepress.launch import sweep
from forgepress.launch.cli import main
from forgepress.launch.sweep import Sweep, read_sweep
from forgepress.launch.sweep_points import Point, drawn, grid, split_axes
from forgepress.launch.sweep_report import compare, metrics_of, pareto, text_table, write_results
from forgepress.launch.sweep_search import suggest
from forgepress.launch.sweep_slurm import main as choose
from forgepress.trainer.config_file import load_config

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
    fixed, axes = split_axes([*words, "m={a: 1, b: 2}", "t='1,2'"])
    assert fixed == ["a.yaml", "betas=[0.9,0.99]", "x=1", "m={a: 1, b: 2}", "t='1,2'"]
    assert [axis.values for axis in axes] == [
        ("1e-3", "3e-4"),
        ("0.5", "0.65", "0.8", "0.95"),
        ("1", "2", "3"),
    ]
    points = grid(axes[:2])
    assert len(points) == 8 and points[1].settings == {"lr": "1e-3", "s": "0.65"}
    assert points[1].words(Path("runs/x"))[-2:] == ["name=point-1", "checkpoint.folder=runs/x"]
    with pytest.raises(ConfigError, match="a grid needs a step"):
        grid(split_axes(["lr=range(0,1)"])[1])
    for wrong in ("lr=range(1,0)", "lr=range(a,b)", "lr=logrange(0,1)", "lr=range(1)"):
        with pytest.raises(ConfigError, match=r"^lr"):
            split_axes([wrong])


def test_random_points_are_the_same_for_a_seed_inside_their_bounds_and_not_twice():
    _, axes = split_axes(["lr=logrange(1e-4,1e-1)", "w=range(0,1)", "k=a,b"])
    points = drawn(axes, 20, seed=1)
    assert points == drawn(axes, 20, seed=1) != drawn(axes, 20, seed=2)
    assert all(1e-4 <= float(p.settings["lr"]) <= 0.1 and 0 <= float(p.settings["w"]) <= 1 for p in points)
    assert sum(float(p.settings["lr"]) < 3e-3 for p in points) >= 5  # by its logarithm
    assert len(drawn(axes[2:], 10)) == 2


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points leave what runs leave, without training."""

    def start(asked: Sweep, point: Point, more: object) -> "subprocess.Popen[bytes]":
        folder = asked.folder / point.name
        folder.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen([sys.executable, "-S", "-c", TRAIN, str(folder), point.settings["x"]])

    monkeypatch.setattr(sweep, "_start", start)


def _sweep(folder: Path, *words: str, **options: object) -> Sweep:
    fixed, axes = split_axes(["a.yaml", *words])
    return Sweep(folder=folder, config=tuple(fixed), axes=tuple(axes), **options)  # type: ignore[arg-type]


def test_each_point_runs_once_and_a_sweep_that_was_stopped_goes_on_with_the_rest(
    tmp_path: Path, pretend: None, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    asked = _sweep(tmp_path / "s", "x=range(1,3,1)")
    assert len(asked.keep()) == 3

    def stop(text: str) -> None:
        said.append(text)
        if text.startswith("point-0"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run_points(asked, at_once=1, say=stop)
    again = read_sweep(tmp_path / "s")
    assert again == asked and [point.number for point in again.open_points()] == [1, 2]
    assert sweep.run_points(again, at_once=2, say=said.append) == 1
    assert sweep.run_points(again, at_once=2, say=said.append) == 0
    assert sorted((asked.folder / "started").read_text().split()) == ["point-0", "point-1", "point-2"]
    assert "3 points, 1 of them done; 2 at a time" in said
    assert any("exit code 1: too much" in line for line in said)
    with pytest.raises(ConfigError, match="holds another sweep"):
        _sweep(tmp_path / "s", "x=range(1,4,1)").keep()
    lines = sweep.results(asked.folder, asked.known())
    assert [line["state"] for line in lines] == ["finished", "finished", "failed"]
    assert (lines[1]["accuracy"], lines[1]["bytes"]) == (0.5, 200)
    assert metrics_of(lines) == ["accuracy", "bytes"]


def test_tpe_goes_to_where_one_goal_is_best_and_a_stopped_search_asks_on_from_the_runs_results(
    tmp_path: Path, pretend: None
):
    asked = _sweep(tmp_path / "t", "x=range(0.1,2)", search="tpe", count=24, goals=("accuracy",))
    half = replace(asked, count=12)
    assert half.keep() == [] and sweep.run_points(half, at_once=2, say=print) == 0
    first = half.known()
    (tmp_path / "t" / "sweep.json").write_text(
        (tmp_path / "t" / "sweep.json").read_text().replace('"count": 12', '"count": 24')
    )
    assert asked.keep() == first and sweep.run_points(asked, at_once=2, say=print) == 0
    points = asked.known()
    assert points[:12] == first and len(points) == 24 and asked.ask() is None
    tried = [float(point.settings["x"]) for point in points]
    assert all(0.1 <= x <= 2 for x in tried)
    assert statistics.median(tried[12:]) > statistics.median(tried[:12])  # more accurate where x is larger
    assert len((asked.folder / "started").read_text().split()) == 24


def test_tpe_weighs_two_goals_keeps_a_tasks_point_and_refuses_a_metric_that_no_run_has(
    tmp_path: Path, pretend: None
):
    asked = _sweep(tmp_path / "t", "x=0.5,1,2", "k=a,b", search="tpe", count=3)
    asked.keep()
    assert asked.ask(2) == asked.ask(2) and [point.number for point in asked.known()] == [2]
    assert sweep.run_points(asked, at_once=1, say=print) == 0
    assert [point.number for point in asked.known()] == [0, 1, 2]
    lines = sweep.results(asked.folder, asked.known())
    assert suggest(asked.axes, lines).keys() == {"x", "k"}
    with pytest.raises(
        ConfigError, match=r"--goal speed: point 0 has no such metric; it has accuracy, bytes"
    ):
        suggest(asked.axes, lines, ["speed"])


def test_an_array_has_the_open_points_each_with_a_config_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["sweep", "demo", "optimizer.lr=1e-3,3e-4,1e-4", f"checkpoint.folder={tmp_path}", "--ranks", "4"]
    job = "--ranks-per-node 2 --time 60 --account lab --dry-run"
    assert main([*words, "--slurm", job]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0,1,2%2" in script and "#SBATCH --account=lab" in script
    folder = tmp_path / "demo-sweep"
    assert f'train {folder}/points/"$SLURM_ARRAY_TASK_ID".yaml' in script
    config = load_config(folder / "points" / "2.yaml")
    assert (config.name, config.optimizer.lr, config.run_folder) == ("point-2", 1e-4, folder / "point-2")
    for point, state in ((0, "finished"), (1, "preempted")):
        (folder / f"point-{point}").mkdir()
        end = {"kind": "end", "session": "a", "state": state, "reason": ""}
        lines = [{"kind": "start", "session": "a", "at": "2026-01-01T00:00:00", "hosts": []}, end]
        (folder / f"point-{point}" / "history.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert main([*words, "--slurm", job]) == 0 and "--array=1,2%2" in capsys.readouterr().out
    assert main([*words, "--slurm", "--ranks-per-node 3"]) == 2
    assert "3 ranks, but the config's mesh has 2" in capsys.readouterr().err
    tpe = ["--search", "tpe", "--points", "5", "--name", "t"]
    assert main([*words, *tpe, "--slurm", "--ranks-per-node 2 --dry-run"]) == 0
    script = capsys.readouterr().out
    assert "--array=0,1,2,3,4%2" in script
    assert f'-m forgepress.launch.sweep_slurm {tmp_path}/t "$SLURM_ARRAY_TASK_ID" || exit 2\nsrun' in script
    assert choose([str(tmp_path / "t"), "3"]) == 0
    assert load_config(tmp_path / "t" / "points" / "3.yaml").optimizer.lr in (1e-3, 3e-4, 1e-4)


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
