"""summary.json has the agreed words, and the final table says the same."""

import json
import re
from pathlib import Path

import pytest
from forgepress.errors import CheckpointError
from forgepress.trainer.figures import (
    bytes_text,
    difference_text,
    holds,
    main_metric,
    metric_text,
    ratio_text,
)
from forgepress.trainer.summary import (
    ArtifactResult,
    Params,
    PhaseResult,
    Summary,
    TechniqueResult,
    print_summary,
    read_summary,
    write_summary,
)
from rich.console import Console

CASES = {
    "batch 1, 1 thread": {
        "dense": {"median": 0.21, "p10": 0.2, "p90": 0.25, "rounds": 50},
        "compressed": {"median": 0.2, "p10": 0.19, "p90": 0.26, "rounds": 50},
        "speed_up": 1.05,
    }
}
AGREED = "steps wall_seconds samples_per_second data_wait_fraction mesh final_loss metrics params techniques artifacts"


def summary(**changes) -> Summary:
    given = {
        "steps": 300,
        "wall_seconds": 187.2,
        "samples_per_second": 12345.6,
        "data_wait_fraction": 0.013,
        "mesh": {"replicate": 2, "shard": 1},
        "final_loss": 0.07,
        "metrics": {"accuracy": 0.979},
        "params": Params(total=266_610, nonzero=13_000),
        "techniques": [
            TechniqueResult(
                name="pruning.network_surgery", requested={"sparsity": 0.95}, achieved={"sparsity": 0.9501}
            )
        ],
        "artifacts": [
            ArtifactResult(
                format="packed",
                path="artifacts/packed",
                bytes=66_000,
                dense_bytes=1_066_440,
                metrics={"accuracy": 0.979, "loss": 0.08},
                latency_ms={"device": "a processor", "note": "no speed-up expected", "cases": CASES},
            )
        ],
        "phases": [
            PhaseResult(phase="dense", step=100, metrics={"loss": 0.06, "accuracy": 0.981}),
            PhaseResult(
                phase="surgery", step=300, metrics={"loss": 0.08, "accuracy": 0.979}, techniques=["p.n"]
            ),
        ],
    }
    return Summary(**{**given, **changes})


def printed(folder: Path, **arguments) -> str:
    with (folder / "terminal.txt").open("w") as file:
        console = Console(width=140, record=True, file=file)
        print_summary(folder, console=console, **arguments)
    return console.export_text()


def test_the_agreed_words_are_all_there_in_order(tmp_path):
    write_summary(tmp_path, summary(phases=(), metrics={}, artifacts=(), techniques=(), final_loss=None))
    assert list(json.loads((tmp_path / "summary.json").read_text())) == AGREED.split()


def test_an_artifact_and_a_technique_have_the_agreed_words(tmp_path):
    write_summary(tmp_path, summary())
    values = read_summary(tmp_path)
    assert values["artifacts"][0].keys() == {
        *("format", "path", "bytes", "dense_bytes", "ratio", "metrics", "latency_ms")
    }
    assert values["artifacts"][0]["ratio"] == pytest.approx(1_066_440 / 66_000)
    assert {"name", "requested", "achieved"} <= values["techniques"][0].keys()
    assert values["params"] == {"total": 266_610, "nonzero": 13_000}


def test_plain_dicts_give_the_same_file_as_dataclasses(tmp_path):
    write_summary(tmp_path, summary())
    first = (tmp_path / "summary.json").read_text()
    values = json.loads(first)
    values.pop("dense")  # worked out from the phases
    write_summary(tmp_path, values)
    assert (tmp_path / "summary.json").read_text() == first


@pytest.mark.parametrize(
    ("change", "named"), [({"wall_seconds": None}, "wall_seconds"), ({"extra": 1}, "extra")]
)
def test_a_missing_or_unknown_key_is_named(tmp_path, change, named):
    values = json.loads(json.dumps(summary().as_json()))
    values.pop("dense")
    values.update(change)
    if values["wall_seconds"] is None:
        del values["wall_seconds"]
    with pytest.raises(ValueError, match=named):
        write_summary(tmp_path, values)


def test_dense_is_the_last_phase_before_the_first_technique_of_the_config(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "phases:\n- {name: dense, steps: 100}\n- {name: more, steps: 50}\n"
        "- {name: surgery, steps: 150, techniques: [{name: pruning.network_surgery, sparsity: 0.95}]}\n"
    )
    steps = {"dense": 100, "more": 150, "surgery": 300}
    write_summary(
        tmp_path, summary(phases=[PhaseResult(phase=name, step=step) for name, step in steps.items()])
    )
    values = read_summary(tmp_path)
    assert values["dense"]["phase"] == "more"
    assert values["phases"][2]["techniques"] == ["pruning.network_surgery"]


def test_a_run_that_compresses_from_the_start_has_no_dense_model():
    assert "dense" not in summary(phases=[PhaseResult(phase="all", step=9, techniques=["x"])]).as_json()


def test_the_table_shows_dense_and_compressed_bytes_ratio_metrics_latency_and_what_was_asked(tmp_path):
    write_summary(tmp_path, summary())
    text = printed(tmp_path, page="report.html")
    assert re.search(r"dense .*1\.07 MB .*98\.10 % .*0\.06", text)
    assert re.search(r"compressed, packed .*66 kB .*16\.2 × .*97\.90 % .*0\.08", text)
    assert re.search(r"pruning\.network_surgery .*sparsity .*95\.00 % .*95\.01 % .*holds", text)
    assert re.search(r"batch 1, 1 thread .*0\.21 \(0\.2 to 0\.25\) .*1\.05 ×", text)
    assert "no speed-up expected" in text and "3:07 min" in text and "report: report.html" in text


def test_what_differs_is_written_large(tmp_path):
    missed = TechniqueResult(
        name="pruning.magnitude", requested={"sparsity": 0.9}, achieved={"sparsity": 0.4}
    )
    write_summary(tmp_path, summary(techniques=[missed]))
    assert re.search(r"pruning\.magnitude .*90\.00 % .*40\.00 % .*DIFFERS", printed(tmp_path))


def test_a_run_without_export_still_shows_its_result(tmp_path):
    write_summary(tmp_path, summary(artifacts=()))
    assert re.search(r"final, not exported .*97\.90 % .*0\.07", printed(tmp_path))


def test_a_missing_summary_says_to_finish_the_run(tmp_path):
    with pytest.raises(CheckpointError, match="finish or resume the run"):
        read_summary(tmp_path)


def test_a_technique_holds_with_more_than_asked_and_not_with_less_or_nothing():
    def line(achieved, **more):
        return {"requested": {"sparsity": 0.9}, "achieved": achieved, **more}

    assert (
        holds(line({"sparsity": 0.9})) and holds(line({"sparsity": 0.95})) and holds(line({"sparsity": 0.89}))
    )
    assert not holds(line({"sparsity": 0.8})) and not holds(line({}))
    assert holds(line({"sparsity": 0.1}, holds=True)) and not holds(line({"sparsity": 0.9}, holds=False))


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (999, "999 B"), (44_123, "44.1 kB"), (999_700, "1 MB"), (1_066_440, "1.07 MB")],
)
def test_bytes_are_in_decimal_units(count, text):
    assert bytes_text(count) == text


def test_numbers_read_as_what_they_are():
    assert metric_text("accuracy", 0.9812) == "98.12 %"
    assert metric_text("perplexity", 12.34567) == "12.35"
    assert metric_text("bits", 8) == "8"
    assert metric_text("loss", None) == "–"
    assert difference_text("accuracy", 0.97, 0.98) == "−1.00 points"
    assert difference_text("perplexity", 12.5, 12.0) == "+0.5"
    assert (ratio_text(24.31), ratio_text(156.2), ratio_text(None)) == ("24.3 ×", "156 ×", "–")


def test_the_main_metric_is_the_configured_one_then_accuracy_then_any_but_the_loss():
    values = {"metrics": {"loss": 1, "perplexity": 2}, "artifacts": [{"metrics": {"accuracy": 0.5}}]}
    assert main_metric(values) == "accuracy" and main_metric(values, "perplexity") == "perplexity"
    assert main_metric({"metrics": {"loss": 1, "perplexity": 2}}) == "perplexity"
    assert main_metric({"metrics": {"loss": 1}}) is None
