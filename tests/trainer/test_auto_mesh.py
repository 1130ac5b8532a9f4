"""`replicate: auto` and `shard: auto`: the mesh follows from the ranks, and the config says so until then."""

from pathlib import Path
from typing import Any

import pytest
from forgepress.errors import ConfigError
from forgepress.parallel import Mesh
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import config_of
from forgepress.trainer.config import ParallelConfig, RunConfig
from forgepress.trainer.loop import Trainer
from forgepress.trainer.preflight import check
from forgepress.trainer.summary import read_config

PHASES = [{"name": "train", "steps": 4}]


def test_the_mesh_follows_from_the_ranks():
    parallel = ParallelConfig(shard="auto", tensor=2)  # type: ignore[arg-type]
    assert (parallel.derived, parallel.ranks, parallel.data_ranks) == ("shard", 2, 1)
    assert parallel.on(8).shard == 4 and parallel.on(2).shard == 1
    assert parallel.on(8).degrees == {"pipeline": 1, "replicate": 1, "shard": 4, "context": 1, "tensor": 2}
    assert parallel.on(8).on(4) == parallel.on(8) and parallel.on(8).derived is None
    with pytest.raises(ConfigError, match=r"tensor 2 does not divide 5 ranks; start a multiple of 2 ranks"):
        parallel.on(5)


def test_a_config_keeps_auto_when_it_is_written_and_says_what_it_takes(tmp_path: Path):
    config = config_of(tmp_path / "run", {"replicate": "auto"}, phases=PHASES)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    assert "replicate: auto" in config.to_yaml() and RunConfig.load(tmp_path / "run.yaml") == config
    assert check(config, 4).mesh["replicate"] == 4
    for wrong, says in (
        ({"replicate": 0}, "given 0; want 1 or more"),
        ({"shard": "all"}, "given 'all'; want a whole number, or auto"),
        ({"replicate": "auto", "shard": "auto"}, "given auto, as replicate is"),
    ):
        (tmp_path / "wrong.yaml").write_text(RunConfig.load(tmp_path / "run.yaml").to_yaml())
        words = [f"parallel.{axis}={value}" for axis, value in {"replicate": 1, **wrong}.items()]
        with pytest.raises(ConfigError, match=says):
            RunConfig.load(tmp_path / "wrong.yaml", overrides=words)


def _session(values: dict[str, Any]) -> tuple[int, int]:
    """A rank that made its own mesh, as a script of somebody's own does: (degree, steps of the run)."""
    import torch.distributed as dist

    config = RunConfig.model_validate(values)
    trainer = Trainer(config, mesh=Mesh.build(config.on(dist.get_world_size()).parallel.degrees))
    trainer.fit()
    return trainer.config.parallel.shard, trainer.step


def test_a_run_goes_on_with_fewer_ranks_on_the_mesh_that_they_make(tmp_path: Path):
    config = config_of(tmp_path / "run", {"shard": "auto"}, phases=PHASES)
    assert run_on_ranks(_session, config.model_dump(mode="json"), ranks=3) == [(3, 4)] * 3
    assert read_config(config.run_folder)["parallel"]["shard"] == 3
    longer = config.model_copy(
        update={"phases": (*config.phases, config.phases[0].model_copy(update={"name": "b"}))}
    )
    assert run_on_ranks(_session, longer.model_dump(mode="json"), ranks=2) == [(2, 8)] * 2
    assert read_config(config.run_folder)["parallel"]["shard"] == 2
