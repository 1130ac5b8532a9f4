"""How many ranks are started: a number, the mesh's, or as many as the machine is meant for."""

from pathlib import Path

import pytest
from forgepress.errors import ConfigError
from forgepress.launch import devices
from forgepress.tests.sessions import config_of


def test_ranks_are_those_asked_for_those_of_the_mesh_or_as_many_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fixed = config_of(tmp_path / "a", {"shard": 2, "tensor": 2}, phases=[{"steps": 1}])
    derived = config_of(tmp_path / "b", {"shard": "auto", "tensor": 2}, phases=[{"steps": 1}])
    for found, most in ((8, 8), (7, 6), (1, 2), (0, 4)):
        monkeypatch.setattr(devices, "gpus", lambda found=found: found)
        monkeypatch.setattr(devices, "threads_per_rank", lambda ranks: 5)
        assert devices.ranks_here(derived, "auto") == devices.ranks_here(derived, None) == most
        assert devices.ranks_here(fixed, "auto") == devices.ranks_here(fixed, None) == 4
    assert devices.ranks_here(fixed, "3") == 3  # refused later, with the whole of what is wrong
    assert devices.ranks_here(derived, "6") == 6
    with pytest.raises(ConfigError, match=r"parallel.shard=auto: tensor 2 does not divide 3 ranks"):
        devices.ranks_here(derived, "3")
    for word in ("0", "-1", "all", "2.5"):
        with pytest.raises(ConfigError, match="want a number from 1, or auto"):
            devices.ranks_here(fixed, word)
