"""Teachers in runs: spread as the student is, run once for each row, found again after a resume, on every mesh."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import Mesh
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import OWN, StopHere, config_of, run
from forgepress.trainer.artifact import load
from forgepress.trainer.config import RunConfig
from forgepress.trainer.export import export
from forgepress.trainer.loop import Trainer
from forgepress.trainer.verify import Trace, Traced, compare

OTHER = {"name": "lenet_300_100", "hidden": [40, 28], "seed": 8}
WEIGHTS = 64 * 40 + 40 + 40 * 28 + 28 + 28 * 10 + 10
LOGITS = {"name": "distillation.logits", "teacher": OTHER, "temperature": 2.0}
# fc1 is on the first of two stages in both models, the others on the second: answers cross both ways.
CROSSING = {
    "name": "distillation.features",
    "teacher": OTHER,
    "layers": {"fc1": "relu2", "relu2": "fc3", "fc3": "fc1"},
    "projection": "always",
}


class Observed(Traced):
    """Remembers the teacher's bytes and calls, and may end after a step as if the machine had gone."""

    stop_at = 0

    def _train_phase(self, stream: Any) -> None:
        teachers = self.assembly.chain.run.teacher
        self.teachers = list(teachers._all.values())
        super()._train_phase(stream)

    def _after_step(self, steps: Any) -> None:
        if self.step == 1:
            self.bytes = [teacher.bytes for teacher in self.teachers]
            self.homes = [teacher._homes for teacher in self.teachers]
        super()._after_step(steps)
        if self.step == self.stop_at:
            self._save()
            self.checkpoints.wait()
            raise StopHere


def session(values: dict[str, Any], stop_at: int = 0) -> dict[str, Any]:
    """One rank of a run; what it saw of its teachers."""
    config = RunConfig.model_validate(values)
    trainer = Observed(config, mesh=Mesh.build(config.parallel.degrees))
    trainer.stop_at = stop_at
    try:
        trainer.fit()
    except StopHere:
        assert stop_at
    return {
        "bytes": getattr(trainer, "bytes", None),
        "homes": getattr(trainer, "homes", None),
        "calls": [teacher.calls for teacher in trainer.teachers],
        "left": [teacher.bytes for teacher in trainer.teachers],
        "weights": {n: p.detach().clone() for n, p in trainer.assembly.engine.parameters().items()}
        if trainer.mesh.world == 1
        else {},
        "loss": trainer.logbook.final_loss,
    }


def ranks_of(config: RunConfig, stop_at: int = 0) -> list[dict[str, Any]]:
    return run_on_ranks(session, config.model_dump(mode="json"), stop_at, ranks=config.parallel.ranks)


def distilling(folder: Path, degrees: dict[str, int], *techniques: dict, **values: Any) -> RunConfig:
    steps = values.pop("steps", 4)
    phases = [{"name": "distil", "steps": steps, "techniques": [*techniques]}]
    return config_of(folder, degrees, **{"phases": phases, **values})


# ── memory


@pytest.mark.parametrize(
    ("degrees", "copies"),
    [
        ({}, 1),
        ({"shard": 2}, 1),
        ({"shard": 3}, 1),
        ({"pipeline": 2}, 1),
        ({"pipeline": 2, "shard": 2}, 1),
        ({"replicate": 2}, 2),
    ],
)
def test_ranks_that_shard_the_student_hold_one_teacher_together(degrees, copies, tmp_path):
    found = [rank["bytes"] for rank in ranks_of(distilling(tmp_path / "run", degrees, LOGITS))]
    assert sum(each for (each,) in found) == 4 * WEIGHTS * copies
    if degrees.get("shard"):
        stages = degrees.get("pipeline", 1)
        for stage in range(stages):
            here = [each for (each,) in found][stage * degrees["shard"] :][: degrees["shard"]]
            # rows are dealt whole, and the first rank has one more of a weight and of a bias
            assert max(here) - min(here) <= 4 * 3 * (64 + 1 + 40 + 1 + 28 + 1)
            assert max(here) < 4 * WEIGHTS


def test_two_techniques_share_one_teacher(tmp_path):
    (found,) = ranks_of(distilling(tmp_path / "run", {}, LOGITS, CROSSING))
    assert found["bytes"] == [4 * WEIGHTS] and found["calls"] == [4]


# ── inner losses in a pipeline


@functools.cache
def alone() -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        return run(distilling(Path(folder) / "alone", {}, CROSSING, LOGITS))


@pytest.mark.parametrize(
    "degrees",
    [
        {"pipeline": 2},
        {"pipeline": 2, "schedule": "interleaved1f1b"},
        {"pipeline": 2, "shard": 2},
        {"pipeline": 3, "microbatches": 3},
    ],
    ids=str,
)
def test_answers_reach_the_stage_of_the_students_module(degrees, tmp_path):
    there = run(distilling(tmp_path / "run", {}, CROSSING, LOGITS, parallel={"microbatches": 2, **degrees}))
    difference = compare(alone(), there)
    assert difference.within(), difference


def test_they_do_cross_stages_both_ways(tmp_path):
    found = ranks_of(distilling(tmp_path / "run", {"pipeline": 2}, CROSSING))
    ((theirs, ours),) = found[0]["homes"]
    pairs = [(theirs[t], ours[s]) for s, t in CROSSING["layers"].items()]
    assert pairs == [(1, 0), (1, 1), (0, 1)] and found[1]["homes"] == [(theirs, ours)]


# ── answers kept by row


def cached(folder: Path, degrees: dict[str, int], *, cache: bool = True, **values: Any) -> RunConfig:
    data = {"source": "digits", "batch": 300, **values.pop("data", {})}
    technique = {**LOGITS, "top_k": 4, "cache": cache}
    return distilling(folder, degrees, technique, data=data, **{"steps": 15, **values})  # 5 steps an epoch


@pytest.mark.parametrize("degrees", [{}, {"shard": 2}, {"pipeline": 2}, {"tensor": 2}], ids=str)
def test_from_the_second_epoch_on_the_teacher_is_not_run_and_its_memory_is_free(degrees, tmp_path):
    for rank in ranks_of(cached(tmp_path / "run", degrees)):
        assert rank["calls"] == [5] and rank["left"] == [0] and rank["bytes"][0] > 0
    for rank in ranks_of(cached(tmp_path / "uncached", degrees, cache=False)):
        assert rank["calls"] == [15]


@pytest.mark.parametrize("degrees", [{}, {"shard": 2}, {"pipeline": 2}], ids=str)
def test_with_the_cache_every_bit_of_the_run_is_the_same(degrees, tmp_path):
    kept = run(cached(tmp_path / "kept", degrees))
    asked = run(cached(tmp_path / "asked", degrees, cache=False))
    difference = compare(kept, asked)
    assert difference.within(exact=True), difference


def test_a_cache_outlives_a_kill_and_another_mesh_goes_on_with_it(tmp_path):
    whole = run(cached(tmp_path / "whole", {}))
    first = ranks_of(cached(tmp_path / "run", {"shard": 3}), stop_at=3)
    second = ranks_of(cached(tmp_path / "run", {"pipeline": 2}), stop_at=8)
    third = run(cached(tmp_path / "run", {"replicate": 2}))
    assert [rank["calls"] for rank in first] == [[3]] * 3
    assert [rank["calls"] for rank in second] == [[2]] * 2  # the rest of the first epoch
    difference = compare(whole, third)
    assert difference.within(), difference


def test_rows_that_an_epoch_drops_are_asked_for_when_they_come(tmp_path):
    data = {"batch": 400, "tail": "drop"}  # 3 of 3.6 batches
    (rank,) = ranks_of(cached(tmp_path / "run", {}, data=data, steps=12))
    assert 3 < rank["calls"][0] <= 12
    kept = run(cached(tmp_path / "kept", {"shard": 2}, data=data, steps=12))
    asked = run(cached(tmp_path / "asked", {"shard": 2}, data=data, steps=12, cache=False))
    assert compare(kept, asked).within(), compare(kept, asked)


# ── an earlier phase, an artifact


TWO = [
    {"name": "dense", "steps": 4, "techniques": [{"name": f"{OWN}RemoveNeurons"}]},
    {
        "name": "distil",
        "steps": 4,
        "techniques": [
            {"name": "pruning.magnitude", "sparsity": 0.5, "ramp": "one_shot", "begin": 1},
            {"name": "distillation.logits", "teacher": {"phase": "dense"}},
            {
                "name": "distillation.features",
                "teacher": {"phase": "dense"},
                "layers": {"relu2": "relu2"},
                "projection": "always",
            },
        ],
    },
]


@functools.cache
def two_phases() -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        return run(config_of(Path(folder) / "alone", {}, phases=TWO))


@pytest.mark.parametrize(
    ("degrees", "then"),
    [({"shard": 2}, {"pipeline": 2}), ({"pipeline": 2, "shard": 2}, {"replicate": 2}), ({"tensor": 2}, {})],
    ids=str,
)
def test_an_earlier_phase_is_a_teacher_also_after_a_resume(degrees, then, tmp_path):
    run(config_of(tmp_path / "run", degrees, phases=TWO), stop_at=6)  # in mid-phase
    teacher = load(tmp_path / "run" / "teachers" / "dense")
    assert teacher.get_submodule("fc1").weight.shape == (6, 64)
    resumed = run(config_of(tmp_path / "run", then, phases=TWO))
    difference = compare(two_phases(), resumed)
    assert difference.within() and difference.masks == 0.0, difference
    export(tmp_path / "run", ["packed"])
    assert load(tmp_path / "run").state_dict().keys() == teacher.state_dict().keys()  # no matrix is left


def test_a_run_is_a_teacher_by_its_folder(tmp_path):
    Trainer(
        config_of(tmp_path / "teacher", {}, phases=[{"name": "dense", "steps": 2}], export=["packed"])
    ).fit()
    spec = {"artifact": str(tmp_path / "teacher")}
    technique = {"name": "distillation.logits", "teacher": spec}
    trainer = Trainer(
        distilling(tmp_path / "run", {}, technique, model={"name": "lenet_300_100", "hidden": [8, 8]})
    )
    train_phase, seen = trainer._train_phase, {}

    def watched(stream):
        teacher = trainer.assembly.chain.run.teacher(spec)
        assert not teacher.loaded  # what only looks at a run needs none
        teacher.load()
        seen.update({name: p.clone() for name, p in teacher._engine.parameters().items()})
        train_phase(stream)

    trainer._train_phase = watched
    trainer.fit()
    reference = dict(load(tmp_path / "teacher").named_parameters())
    assert seen.keys() == reference.keys()
    assert all(torch.equal(seen[name], p) for name, p in reference.items())


def test_a_phase_that_has_not_been_run_here_is_no_teacher(tmp_path):
    with pytest.raises(ConfigError, match="earlier phases are dense"):
        Trainer(
            config_of(
                tmp_path / "run",
                {},
                phases=[
                    {"name": "dense", "steps": 1},
                    {
                        "name": "distil",
                        "steps": 1,
                        "techniques": [{"name": "distillation.logits", "teacher": {"phase": "densse"}}],
                    },
                ],
            )
        ).fit()
