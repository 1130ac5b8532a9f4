"""Starting a run again: finished, changed, another one, afresh; and what it takes along."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from forgepress.errors import ConfigError
from forgepress.tests.sessions import StopHere, config_of
from forgepress.trainer.best import better
from forgepress.trainer.checkpoint_files import steps_in
from forgepress.trainer.config import BestConfig, RunConfig
from forgepress.trainer.export import export
from forgepress.trainer.loop import Trainer
from forgepress.trainer.step import Steps

PRUNE = {"name": "pruning.magnitude", "sparsity": 0.5}
PHASES = [
    {"name": "dense", "steps": 4},
    {"name": "prune", "steps": 4, "techniques": [PRUNE]},
]


def config(folder: Path, **values: Any) -> RunConfig:
    return config_of(folder, {}, **{"phases": PHASES, "tracking": {"every": 1}, **values})


class Stopping(Trainer):
    """Ends after a step, with that step's checkpoint on disk."""

    stop_at = 0

    def _after_step(self, steps: Steps) -> None:
        super()._after_step(steps)
        if self.step == self.stop_at:
            self.checkpoints.wait()
            raise StopHere


def fit(config: RunConfig, stop_at: int = 0, *, fresh: bool = False) -> dict[str, Any]:
    trainer = Stopping(config, fresh=fresh)
    trainer.stop_at = stop_at
    try:
        return trainer.fit()
    except StopHere:
        return {}


def steps_of(config: RunConfig) -> list[int]:
    lines = map(json.loads, (config.run_folder / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["kind"] == "train"]


def test_a_finished_run_started_again_does_no_step_and_says_the_same(tmp_path: Path) -> None:
    run = config(tmp_path / "run", export=["packed"])
    first = fit(run)
    artifact = (run.run_folder / "artifacts" / "packed" / "model.safetensors").read_bytes()
    again = fit(run)
    assert steps_of(run) == list(range(1, 9))
    for key in ("steps", "final_loss", "metrics", "params", "techniques", "phases"):
        assert again[key] == first[key]
    assert (run.run_folder / "artifacts" / "packed" / "model.safetensors").read_bytes() == artifact


def test_a_run_that_was_finished_goes_on_when_a_phase_is_added(tmp_path: Path) -> None:
    fit(config(tmp_path / "run"))
    longer = config(tmp_path / "run", phases=[*PHASES, {"name": "tune", "steps": 2}])
    summary = fit(longer)
    assert steps_of(longer) == list(range(1, 11))
    assert [phase["phase"] for phase in summary["phases"]] == ["dense", "prune", "tune"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"name": "lenet_300_100", "hidden": [17, 12]}}, r"hidden: \[17, 12\] given"),
        ({"model": {"name": "gpt", "vocabulary": 9, "context": 4}}, "name: gpt given"),
        ({"phases": [{"name": "other", "steps": 4}, PHASES[1]]}, "phases: other, prune given"),
        ({"phases": [PHASES[0]]}, "phases: dense given"),
        ({"phases": [PHASES[0], {**PHASES[1], "techniques": []}]}, r"techniques \[\] given"),
        (
            {"phases": [PHASES[0], {**PHASES[1], "techniques": [{**PRUNE, "sparsity": 0.6}]}]},
            "'sparsity': 0.6",
        ),
        ({"optimizer": {"name": "sgd", "lr": 0.01}}, "optimizer.name sgd given"),
    ],
)
def test_another_run_under_the_same_name_is_refused_and_harms_nothing(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    run = config(tmp_path / "run")
    fit(run, stop_at=6)
    before = (run.run_folder / "config.yaml").read_bytes(), (run.run_folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=says) as caught:
        fit(config(tmp_path / "run", **change))
    assert "step-6" in str(caught.value) and "--fresh" in str(caught.value)
    assert (
        (run.run_folder / "config.yaml").read_bytes(),
        (run.run_folder / "metrics.jsonl").read_bytes(),
    ) == before
    fit(run)
    assert steps_of(run) == list(range(1, 9))


def test_the_learning_rate_and_later_phases_may_change(tmp_path: Path) -> None:
    fit(config(tmp_path / "run"), stop_at=3)
    later = [PHASES[0], {**PHASES[1], "steps": 2, "techniques": [{**PRUNE, "sparsity": 0.25}]}]
    changed = config(tmp_path / "run", phases=later, optimizer={"name": "adamw", "lr": 0.003})
    summary = fit(changed)
    assert summary["steps"] == 6
    assert summary["techniques"][0]["requested"]["sparsity"] == 0.25


def test_fresh_starts_over_but_not_before_all_is_known_to_be_right(tmp_path: Path) -> None:
    run = config(tmp_path / "run")
    fit(run)
    wrong = config(
        tmp_path / "run", phases=[{"name": "a", "steps": 1, "techniques": [{**PRUNE, "match": "no*"}]}]
    )
    with pytest.raises(ConfigError, match="matches no parameter"):
        fit(wrong, fresh=True)
    assert steps_in(run.run_folder / "checkpoints") == [6, 8]
    other = config(tmp_path / "run", model={"name": "lenet_300_100", "hidden": [9, 9]}, phases=[{"steps": 2}])
    assert fit(other, fresh=True)["steps"] == 2
    assert steps_in(run.run_folder / "checkpoints") == [2]
    assert steps_of(run) == [1, 2]


def test_a_technique_that_matches_nothing_in_a_later_phase_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    wrong = config(
        tmp_path / "run", phases=[PHASES[0], {**PHASES[1], "techniques": [{**PRUNE, "match": "no*"}]}]
    )
    with pytest.raises(ConfigError, match=r"phases\.1\.techniques\.0"):
        Trainer(wrong).fit()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["run", "checkpoint"])
def test_export_gives_the_artifacts_of_the_run(tmp_path: Path, where: str) -> None:
    run = config(tmp_path / "run", export=["packed", "safetensors"])
    fit(run)
    artifacts = run.run_folder / "artifacts"
    files = [artifacts / format / "model.safetensors" for format in ("packed", "safetensors")]
    before = {file: file.read_bytes() for file in files}
    shutil.rmtree(artifacts)
    newest = run.run_folder / "checkpoints" / "step-8"
    export(run.run_folder if where == "run" else newest)
    assert {file: file.read_bytes() for file in files} == before


def test_what_is_not_a_number_is_never_the_best() -> None:
    wanted = BestConfig(metric="loss", mode="min")
    nan = {"loss": float("nan")}
    assert better(None, nan, wanted, phase=0, step=1) is None
    first = better(None, {"loss": 2.0}, wanted, phase=0, step=2)
    assert first is not None and better(first, nan, wanted, phase=0, step=3) is None
    later = better(first, {"loss": 1.0}, wanted, phase=0, step=4)
    assert later is not None and later.step == 4
    anew = better(later, {"loss": 9.0}, wanted, phase=1, step=5)  # a later phase's model is another one
    assert anew is not None and anew.step == 5
