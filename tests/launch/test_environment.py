import os

import pytest
from forgepress.errors import ConfigError
from forgepress.launch import Place, read_place
from forgepress.launch.environment import child_environment, is_restart, threads_per_rank

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "3,1",
    "SLURM_STEP_NODELIST": "gpu[003-007,9],cpu1",
    "SLURMD_NODENAME": "gpu004",
}


def test_nothing_in_the_environment_is_one_process_alone():
    place = read_place({"MASTER_ADDR": "left-over", "PATH": "/bin"})
    assert (place.rank, place.world, place.launched_by) == (0, 1, "nothing")


def test_torchruns_variables_are_read():
    place = read_place(TORCHRUN)
    assert place == Place(
        rank=3,
        world=4,
        local_rank=1,
        local_world=2,
        host=place.host,
        store_address="node1",
        store_port=29500,
        launched_by="torchrun",
    )


def test_a_child_of_our_launcher_reads_what_the_launcher_wrote():
    place = read_place(child_environment(2, 3, 29501, {"FORGEPRESS_PARENT": "1"}))
    assert (place.rank, place.world, place.local_rank, place.store_port) == (2, 3, 2, 29501)
    assert place.launched_by == "forgepress"


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_half_set_environment_names_what_is_missing_and_what_is_given(missing: str):
    given = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(ConfigError, match=f"{missing} missing") as caught:
        read_place(given)
    assert all(
        f"{name}={TORCHRUN[name]}" in str(caught.value) for name in given if name != "LOCAL_WORLD_SIZE"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"RANK": "4"}, "RANK=4 but WORLD_SIZE=4; want 0 to 3"),
        ({"RANK": "one"}, "RANK='one'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 but LOCAL_WORLD_SIZE=2"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT='-1'"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(change: dict[str, str], says: str):
    with pytest.raises(ConfigError) as caught:
        read_place(TORCHRUN | change)
    assert says in str(caught.value)


def test_a_slurm_step_is_read_with_the_first_host_as_the_store():
    place = read_place(SLURM)
    assert (place.rank, place.world, place.local_rank, place.local_world) == (3, 4, 0, 1)
    assert (place.host, place.store_address, place.launched_by) == ("gpu004", "gpu003", "slurm")
    assert read_place(SLURM | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}).store_port == place.store_port
    assert read_place(SLURM | {"SLURM_JOB_ID": "78"}).store_port != place.store_port


def test_a_batch_shell_or_a_step_of_one_task_is_not_a_launch():
    batch = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert read_place(batch).launched_by == "nothing"
    assert read_place(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}).launched_by == "nothing"


MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "job-1",
}


def test_open_mpi_is_read_and_must_say_where_several_hosts_meet():
    place = read_place(MPI)
    assert (place.rank, place.world, place.local_rank, place.launched_by) == (1, 2, 1, "openmpi")
    assert place.store_port != read_place(MPI | {"PMIX_NAMESPACE": "job-2"}).store_port
    two_hosts = MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT missing"):
        read_place(two_hosts)
    assert read_place(two_hosts | {"MASTER_ADDR": "a", "MASTER_PORT": "1234"}).store_port == 1234
    with pytest.raises(ConfigError, match="OMPI_COMM_WORLD_RANK missing"):
        read_place({name: value for name, value in MPI.items() if name != "OMPI_COMM_WORLD_RANK"})


def test_torchrun_goes_before_open_mpi_and_that_before_slurm():
    assert read_place(SLURM | MPI | TORCHRUN).launched_by == "torchrun"
    assert read_place(SLURM | MPI).launched_by == "openmpi"
    assert read_place(SLURM | MPI | {"OMPI_COMM_WORLD_SIZE": "1"}).launched_by == "slurm"


def test_a_requeued_job_does_not_meet_what_is_left_of_its_last_start():
    assert read_place(SLURM | {"SLURM_RESTART_COUNT": "1"}).store_port != read_place(SLURM).store_port
    assert is_restart({"SLURM_RESTART_COUNT": "1"}) and is_restart({"TORCHELASTIC_RESTART_COUNT": "2"})
    assert not is_restart({"SLURM_RESTART_COUNT": "0"}) and not is_restart({})


def test_a_half_set_slurm_step_is_refused_by_name():
    with pytest.raises(ConfigError, match="SLURM_PROCID missing"):
        read_place({name: value for name, value in SLURM.items() if name != "SLURM_PROCID"})


def test_cores_are_divided_among_local_ranks_unless_the_user_has_said_otherwise():
    cores = len(os.sched_getaffinity(0))
    assert threads_per_rank(1) == cores
    assert threads_per_rank(10 * cores) == 1
    assert child_environment(0, 1, 1, {})["OMP_NUM_THREADS"] == str(cores)
    assert child_environment(0, 1, 1, {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"
    assert child_environment(0, 1, 1, {"TORCHELASTIC_USE_AGENT_STORE": "True"})["PYTHONSAFEPATH"] == "1"
    assert "TORCHELASTIC_USE_AGENT_STORE" not in child_environment(
        0, 1, 1, {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    )
