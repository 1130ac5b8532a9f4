import os
from pathlib import Path

import pytest
from forgepress.launch import Place
from forgepress.launch.doctor import examine
from forgepress.launch.network import interface_towards, interfaces, set_defaults


def test_the_doctor_finds_this_machine_well_and_tries_an_all_reduce(tmp_path: Path):
    found = {finding.what: finding for finding in examine(tmp_path / "runs")}
    assert found["all-reduce"].well and "2 ranks agree" in found["all-reduce"].says
    assert all(found[what].well for what in ("python", "torch", "gloo", "environment", "clock"))
    assert all(finding.advice for finding in found.values() if finding.well is False)


def test_what_is_wrong_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    monkeypatch.setattr("forgepress.launch.doctor._all_reduce", lambda ranks: None)
    found = {finding.what: finding for finding in examine(tmp_path) if finding}
    assert found["environment"].well is False and "WORLD_SIZE" in str(found["environment"])
    if interfaces():
        assert "→ unset GLOO_SOCKET_IFNAME=nowhere0" in str(found["network"])


def test_interfaces_are_set_where_nobody_has_and_loopback_where_one_host_is_all():
    if "lo" not in interfaces():
        pytest.skip("this system does not name its interfaces")
    assert interface_towards("127.0.0.1") == "lo"
    here = Place(rank=0, world=2, local_world=2, launched_by="torchrun")
    given: dict[str, str] = {}
    assert (
        set_defaults(here, given)
        == given
        == {
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
            "GLOO_SOCKET_IFNAME": "lo",
        }
    )
    other = Place(rank=0, world=2, local_world=1, store_address="127.0.0.1", launched_by="slurm")
    assert set_defaults(other, {"GLOO_SOCKET_IFNAME": "ib0"})["GLOO_SOCKET_IFNAME"] == "ib0"
    assert set_defaults(other, {})["NCCL_SOCKET_IFNAME"] == "lo"
    assert set_defaults(Place(), {}) == {}
