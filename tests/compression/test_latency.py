"""Latency runs models by turns, states its circumstances, and is honest about zeros. No test looks at a time."""

import json

import pytest
import torch
from forgepress.compression import latency
from forgepress.errors import CheckpointError, ConfigError
from forgepress.trainer.artifact import save_artifact
from forgepress.trainer.bench import bench_artifact
from rich.console import Console
from torch import nn


class Recorder(nn.Linear):
    """Writes down each pass: its name, rows, threads, and whether gradients were on."""

    calls: list

    def __init__(self, name: str, calls: list):
        super().__init__(3, 2)
        self.name, self.calls = name, calls

    def forward(self, rows):
        self.calls.append(
            (self.name, len(rows), torch.get_num_threads(), torch.is_grad_enabled(), self.training)
        )
        return super().forward(rows)


def example(rows: int):
    return (torch.zeros(rows, 3),)


def test_models_take_turns_and_change_who_goes_first():
    calls = []
    models = {name: Recorder(name, calls) for name in ("dense", "compressed")}
    cases = latency.measure(models, example, batches=(4,), threads=(1,), warmup=1, rounds=3, seconds=60)
    assert "".join(name[0] for name, *_ in calls) == "dc" + "dc" + "cd" + "dc"
    assert {call[1:] for call in calls} == {(4, 1, False, False)}
    assert cases[0].timings["dense"].rounds == cases[0].timings["compressed"].rounds == 3


def test_one_thread_and_all_threads_are_measured_and_the_setting_is_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        calls = []
        cases = latency.measure(
            {"dense": Recorder("dense", calls)}, example, batches=(1, 7), rounds=1, warmup=0
        )
        assert [case.name for case in cases] == [
            "batch 1, 1 thread",
            "batch 7, 1 thread",
            "batch 1, 2 threads",
            "batch 7, 2 threads",
        ]
        assert [call[1:3] for call in calls] == [(1, 1), (7, 1), (1, 2), (7, 2)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_training_mode_is_put_back_module_by_module():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    model[0].eval()
    latency.measure({"dense": model}, example, batches=(1,), threads=(1,), rounds=1, warmup=0)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


def test_an_exhausted_time_limit_still_gives_five_rounds():
    model = nn.Linear(3, 2)
    (case,) = latency.measure({"dense": model}, example, batches=(1,), threads=(1,), rounds=40, seconds=0)
    assert case.timings["dense"].rounds == 5


def test_percentiles_are_in_order_and_the_speed_up_is_that_of_the_medians():
    timing = latency._timing([float(value) for value in range(1, 102)])
    assert (timing.p10, timing.median, timing.p90) == (11.0, 51.0, 91.0)
    half = latency.Timing(median=25.5, p10=1.0, p90=2.0, rounds=5)
    case = latency.Case(batch=1, threads=None, timings={"dense": timing, "compressed": half})
    written = latency.as_json([case], note="a note")
    assert (
        written["cases"]["batch 1"]["speed_up"] == 2.0 and written["note"] == "a note" and written["device"]
    )


@pytest.mark.parametrize("changes", [{"batches": (0,)}, {"rounds": 0}, {"models": {}}])
def test_counts_below_one_are_refused(changes):
    given = {"models": {"dense": nn.Linear(3, 2)}, "example": example, **changes}
    with pytest.raises(ValueError, match="at least one model"):
        latency.measure(**given)


def test_zeros_alone_promise_no_speed_and_other_shapes_promise_a_measurement():
    dense, zeros, narrow = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
    nn.init.zeros_(zeros.weight)
    assert "no speed-up expected from unstructured zeros on this device (cpu)" in latency.speed_note(
        dense, zeros
    )
    assert "measured" in latency.speed_note(dense, narrow)
    assert "measured" in latency.speed_note(dense, nn.Linear(8, 8, dtype=torch.bfloat16))
    assert "same shapes" in latency.speed_note(dense, nn.Linear(8, 8))


@pytest.fixture
def artifact(tmp_path):
    from forgepress.trainer.models import build_model

    module = build_model("lenet_300_100", seed=0).module
    nn.init.zeros_(module.fc1.weight)
    tensors = module.state_dict()
    save_artifact(tmp_path / "small", tensors=tensors, model_spec="lenet_300_100", plan=[], format="packed")
    return tmp_path / "small"


def test_bench_prints_a_table_the_note_and_json_that_says_the_same(artifact):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    result = bench_artifact(artifact, batches=(1, 3), rounds=2, seconds=0.1, console=console)
    text = console.export_text()
    console.file.close()
    assert "batch 3, 1 thread" in text and "no speed-up expected from unstructured zeros" in text
    assert json.loads(text[text.index('{"artifact"') :]) == result
    assert result["bytes"] == sum(file.stat().st_size for file in artifact.iterdir())


def test_bench_can_write_its_json_into_a_file(artifact, tmp_path, capsys):
    result = bench_artifact(artifact, batches=(1,), rounds=1, seconds=0.1, json_path=tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert '"latency_ms"' not in capsys.readouterr().out


def test_bench_names_a_device_that_is_not_there(artifact):
    with pytest.raises(ConfigError, match=r"device='nowhere'.*device=cpu"):
        bench_artifact(artifact, device="nowhere")


def test_bench_does_not_import_the_code_an_artifact_names(tmp_path):
    spec = {"factory": "planted_for_bench:make"}
    save_artifact(tmp_path / "a", tensors={"w": torch.zeros(1)}, model_spec=spec, plan=[], format="packed")
    with pytest.raises(CheckpointError, match="trust_factory"):
        bench_artifact(tmp_path / "a")
