"""Integer artifacts of whole runs: reloaded, scored, timed, compared with the training graph, or refused."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from forgepress.compression.integer.torch_layers import IntegerLinear
from forgepress.errors import CheckpointError, ConfigError, NoOpError
from forgepress.parallel import Mesh
from forgepress.trainer import delivery_formats
from forgepress.trainer.artifact import load
from forgepress.trainer.config import RunConfig
from forgepress.trainer.export import export
from forgepress.trainer.loop import Trainer
from forgepress.trainer.preflight import check, examine
from forgepress.trainer.summary import print_summary
from rich.console import Console

CALIBRATE = {"name": "quantization.post_training"}


def needs_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'forgepress[onnx]'")


def config(folder: Path, exports: list, **technique) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "run",
            "model": {"name": "lenet_300_100", "hidden": [64, 32]},
            "data": {"source": "digits", "batch": 64},
            "optimizer": {"name": "adam", "lr": 0.003},
            "phases": [
                {"name": "dense", "epochs": 3},
                {"name": "grids", "steps": 3, "techniques": [{**CALIBRATE, **technique}]},
            ],
            "export": exports,
            "checkpoint": {"folder": str(folder)},
        }
    )


def train(config: RunConfig) -> dict:
    Trainer(config, mesh=Mesh()).fit()
    return json.loads((config.run_folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config, summary) of a run that delivers packed and torch_int8."""
    made = config(tmp_path_factory.mktemp("runs"), ["packed", "torch_int8"])
    return made, train(made)


def test_a_run_delivers_integers_that_were_reloaded_scored_timed_and_compared(finished):
    made, summary = finished
    packed, integer = summary["artifacts"]
    assert integer["format"] == "torch_int8" and integer["arithmetic"] == {"integer, 8 bits": 3}
    assert integer["agreement"]["difference"] <= integer["agreement"]["tolerance"]
    assert integer["bytes"] < integer["dense_bytes"] / 2  # 64-64-32-10: headers count
    assert abs(integer["metrics"]["accuracy"] - packed["metrics"]["accuracy"]) < 0.01
    assert integer["latency_ms"]["cases"]["batch 1, 1 thread"]["compressed"]["median"] > 0
    loaded = load(made.run_folder / "artifacts/torch_int8")
    assert sum(isinstance(layer, IntegerLinear) for layer in loaded.modules()) == 3


def test_terminal_and_report_say_how_it_computes_and_time_both_kinds_of_model(finished):
    made, _ = finished
    console = Console(width=140, record=True, file=io.StringIO())
    print_summary(made.run_folder, console=console)
    text = console.export_text()
    assert "Latency, torch_int8" in text and "3 layers integer, 8 bits; outputs within" in text
    page = (made.run_folder / "report.html").read_text()
    assert "<code>torch_int8</code>: 3 layers integer, 8 bits; outputs within" in page
    latency = page[page.index("<h2>Latency</h2>") :]
    assert "<code>packed</code>" in latency and "<code>torch_int8</code>" in latency


def test_export_adds_an_onnx_artifact_to_a_finished_run(finished):
    needs_onnx()
    made, summary = finished
    (folder,) = export(made.run_folder, formats=["onnx"])
    assert sorted(file.name for file in folder.iterdir()) == ["artifact.json", "model.onnx"]
    stored = json.loads((folder / "artifact.json").read_text())
    assert {layer["arithmetic"] for layer in stored["layers"].values()} == {"integer"}
    assert stored["agreement"]["difference"] <= stored["agreement"]["tolerance"]
    assert abs(stored["metrics"]["accuracy"] - summary["artifacts"][0]["metrics"]["accuracy"]) < 0.01
    assert "batch 32, 1 thread" in stored["latency_ms"]["cases"]
    model = load(folder)
    assert model(torch.zeros(7, 1, 8, 8)).shape == (7, 10) and not model.training
    with pytest.raises(ConfigError, match="takes no input pixels"):
        model(pixels=torch.zeros(7, 1, 8, 8))
    with pytest.raises(ConfigError, match="wants the inputs input"):
        model()


def test_an_onnx_file_that_was_exchanged_is_refused(finished, tmp_path):
    needs_onnx()
    made, _ = finished
    folder = made.run_folder / "artifacts/onnx"
    if not folder.exists():
        export(made.run_folder, formats=["onnx"])
    shutil.copytree(folder, tmp_path / "copy")
    with (tmp_path / "copy/model.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match="damaged or was exchanged"):
        load(tmp_path / "copy")


def test_groups_with_rounded_inputs_are_refused_before_training(tmp_path):
    made = config(tmp_path, ["torch_int8"], granularity=8)
    with pytest.raises(ConfigError, match=r"export\.0\.format\s.*fc1, fc2, fc3 round their inputs"):
        check(made, 1)
    allowed = config(tmp_path, [{"format": "torch_int8", "float_layers": ["fc*"]}], granularity=8)
    assert check(allowed, 1).problems == ()


def test_integers_of_a_model_that_nothing_quantizes_are_refused_before_training(tmp_path):
    made = config(tmp_path, ["torch_int8"])
    plain = made.model_copy(update={"phases": made.phases[:1]})
    assert "no phase quantizes a layer" in examine(plain, 1).problems[0].message


def test_missing_libraries_are_said_at_check_and_before_an_export(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(
        delivery_formats, "find_spec", lambda name: None if name == "onnxruntime" else object()
    )
    with pytest.raises(ConfigError, match=r"onnx needs onnxruntime.*pip install 'forgepress\[onnx\]'"):
        check(config(tmp_path, ["onnx"]), 1)
    with pytest.raises(ConfigError, match="onnx needs onnxruntime"):
        Trainer(config(tmp_path, ["onnx"]), mesh=Mesh()).fit()
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="onnx needs onnxruntime"):
        export(finished[0].run_folder, formats=["onnx"])


def test_an_export_that_computes_something_else_fails_the_run(tmp_path, monkeypatch):
    from forgepress.compression.integer import agreement

    monkeypatch.setattr(agreement, "_difference", lambda found, expected: 0.2)
    monkeypatch.setattr(agreement, "_MARGIN", 0.5)
    with pytest.raises(NoOpError, match=r"export torch_int8: on 16 rows its outputs differ"):
        train(config(tmp_path, ["torch_int8"]))
