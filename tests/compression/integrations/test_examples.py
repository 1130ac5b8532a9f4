"""Every example of a loop of somebody else's is short, runs, and delivers the zeros that it asks for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from forgepress.tests.sessions import torchvision_operators
from torch import nn

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
NEEDS = {
    "plain_loop": "sklearn",
    "accelerate_loop": "accelerate",
    "transformers_trainer": "transformers",
    "lightning_trainer": "lightning",
}


def example(name: str) -> Any:
    torchvision_operators()
    pytest.importorskip(NEEDS[name], reason=f"the example {name} needs {NEEDS[name]}, which is not installed")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def share(model: nn.Module, *names: str) -> float:
    chosen = [p for name, p in model.named_parameters() if name in names]
    assert len(chosen) == len(names)
    return sum(int((p == 0).sum()) for p in chosen) / sum(p.numel() for p in chosen)


def test_each_example_is_under_forty_lines() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert {script.stem for script in scripts} == set(NEEDS)
    assert {s.stem: n for s in scripts if (n := len(s.read_text().splitlines())) >= 40} == {}


def test_the_plain_loop_prunes_and_keeps_the_zeros(capsys: pytest.CaptureFixture[str]) -> None:
    model = example("plain_loop").main(steps=40)
    assert share(model, "0.weight", "2.weight") == pytest.approx(0.9, abs=1e-3)
    assert "weights are zero" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_the_accelerate_loop_prunes() -> None:
    model = example("accelerate_loop").main(epochs=1)
    assert share(model, "0.weight", "2.weight") == pytest.approx(0.8, abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_the_transformers_trainer_leaves_two_of_four_neighbours_that_are_summed(tmp_path: Path) -> None:
    model = example("transformers_trainer").main(str(tmp_path), steps=10)
    kernels = [
        p for n, p in model.named_parameters() if n.endswith("weight") and (".attn." in n or ".mlp." in n)
    ]
    assert len(kernels) == 8
    for kernel in kernels:  # Conv1D: [inputs, outputs]
        assert ((kernel != 0).unflatten(0, (-1, 4)).sum(dim=1) == 2).all()


@pytest.mark.filterwarnings("ignore")
def test_the_lightning_trainer_takes_whole_pixels_out(tmp_path: Path) -> None:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    model = example("lightning_trainer").main(str(tmp_path), epochs=10, **quiet)
    kept = (model.network[0].weight != 0).sum(dim=0)
    assert 10 <= (kept == 0).sum() <= 54  # of 64; the corners of the images are always white
    assert (kept > 90).sum() >= 10
