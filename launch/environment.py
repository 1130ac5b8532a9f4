"""Who am I among the ranks? Read once from the environment, kept as one frozen value."""

import os
import re
import socket
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import ConfigError
from .watch import Watch

LaunchedBy = Literal["nothing", "forgepress", "torchrun", "openmpi", "slurm"]

# What torchrun gives every rank. RANK or WORLD_SIZE alone says "somebody launched us": then all five are needed.
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MPI_NEEDED = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
_SLURM_NEEDED = (
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_ID",
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank's place: its number, how many there are, where the rendezvous store listens.

    `watch` is always there; without a launcher it does nothing, so a trainer calls `place.watch.beat(step, where)`
    without asking.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # number among the ranks of this host: the device index
    local_world: int = 1  # ranks on this host
    host: str = field(default_factory=socket.gethostname)
    store_address: str = "127.0.0.1"  # where rank 0's (or torchrun's) TCP store listens
    store_port: int = 0  # 0: a single process needs no store
    launched_by: LaunchedBy = "nothing"
    watch: Watch = field(default_factory=Watch, compare=False, repr=False)


def read_place(environment: Mapping[str, str] | None = None) -> Place:
    """This process' place. The first that is there decides, because it was started inside of those below it:

    1. RANK or WORLD_SIZE: torchrun (our own launcher sets the same);
    2. OMPI_COMM_WORLD_SIZE above 1: Open MPI's mpirun, which in a SLURM job is started by a step of its own;
    3. SLURM_STEP_NUM_TASKS above 1: one task of an srun step;
    4. none: one process alone.
    raises: ConfigError that names the variables when they are half set, not numbers or contradict each other.
    """
    given = os.environ if environment is None else environment
    if "RANK" in given or "WORLD_SIZE" in given:
        return _torchrun_place(given)
    if any(given.get(name) for name in _MPI_NEEDED) and given.get("OMPI_COMM_WORLD_SIZE") != "1":
        return _mpi_place(given)
    # sbatch's own shell and `srun --pty` have SLURM variables too; only a step of several tasks is a launch.
    if _is_number(given.get("SLURM_STEP_NUM_TASKS")) and int(given["SLURM_STEP_NUM_TASKS"]) > 1:
        return _slurm_place(given)
    return Place()


def is_restart(environment: Mapping[str, str] | None = None) -> bool:
    """Has SLURM (requeue) or torchrun (elastic restart) started this very job before?"""
    given = os.environ if environment is None else environment
    counts = (given.get(f"{who}_RESTART_COUNT", "0") for who in ("SLURM", "TORCHELASTIC"))
    return any(count not in ("", "0") for count in counts)


def child_environment(
    rank: int, ranks: int, port: int, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of local rank `rank` of `ranks`: torchrun's variables, so every library understands them."""
    child = dict(os.environ if environment is None else environment)
    child |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # A checkout whose root is first on sys.path would shadow the standard library's own `compression` (3.14).
        "PYTHONSAFEPATH": "1",
    }
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        child.pop(
            name, None
        )  # left over from an outer torchrun: torch would look for a store that is not ours
    child.setdefault("OMP_NUM_THREADS", str(threads_per_rank(ranks)))
    if sys.platform == "linux":
        child.setdefault(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # all ranks are here: no need to ask for the host's own name
    return child


def threads_per_rank(local_ranks: int) -> int:
    """Cores this process may use, divided among the ranks of this host; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // local_ranks)


def _torchrun_place(given: Mapping[str, str]) -> Place:
    missing = [name for name in _NEEDED if not given.get(name)]
    if missing:
        present = [f"{name}={given[name]}" for name in _NEEDED if given.get(name)]
        raise ConfigError(
            f"the environment is half set: {', '.join(present) or 'nothing'} given, {', '.join(missing)} missing; "
            f"start with torchrun (which sets all of {', '.join(_NEEDED)}) or unset them to run on this machine alone"
        )
    world = _number(given, "WORLD_SIZE", least=1)
    rank = _number(given, "RANK", below=("WORLD_SIZE", world))
    local_world = _number(given, "LOCAL_WORLD_SIZE", least=1) if given.get("LOCAL_WORLD_SIZE") else world
    if "FORGEPRESS_PARENT" in given:
        launched_by: LaunchedBy = "forgepress"
    else:
        launched_by = "torchrun"
    return Place(
        rank=rank,
        world=world,
        local_rank=_number(given, "LOCAL_RANK", below=("LOCAL_WORLD_SIZE", local_world)),
        local_world=local_world,
        store_address=given["MASTER_ADDR"],
        store_port=_number(given, "MASTER_PORT", least=1),
        launched_by=launched_by,
    )


def _mpi_place(given: Mapping[str, str]) -> Place:
    missing = [name for name in _MPI_NEEDED if not given.get(name)]
    if missing:
        raise ConfigError(
            f"Open MPI's environment is half set: {', '.join(missing)} missing; start with mpirun, which sets them all"
        )
    world = _number(given, "OMPI_COMM_WORLD_SIZE", least=1)
    local_world = _number(given, "OMPI_COMM_WORLD_LOCAL_SIZE", least=1)
    meeting = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not given.get(name)]
    if meeting and local_world < world:
        raise ConfigError(
            f"Open MPI started {world} ranks on several hosts, but {', '.join(meeting)} missing: it does not say where "
            "they meet; give mpirun -x MASTER_ADDR=FIRST_HOST -x MASTER_PORT=29500"
        )
    # Two mpiruns on one host must not meet: the job's name is the same on all of its ranks and on no others'.
    job = given.get("PMIX_NAMESPACE") or given.get("OMPI_MCA_ess_base_jobid") or ""
    port = 20000 + zlib.crc32(job.encode()) % 10000
    return Place(
        rank=_number(given, "OMPI_COMM_WORLD_RANK", below=("OMPI_COMM_WORLD_SIZE", world)),
        world=world,
        local_rank=_number(
            given, "OMPI_COMM_WORLD_LOCAL_RANK", below=("OMPI_COMM_WORLD_LOCAL_SIZE", local_world)
        ),
        local_world=local_world,
        store_address=given.get("MASTER_ADDR") or "127.0.0.1",
        store_port=_number(given, "MASTER_PORT", least=1) if given.get("MASTER_PORT") else port,
        launched_by="openmpi",
    )


def _slurm_place(given: Mapping[str, str]) -> Place:
    missing = [name for name in _SLURM_NEEDED if not given.get(name)]
    if missing:
        raise ConfigError(
            f"SLURM's environment is half set: SLURM_STEP_NUM_TASKS={given['SLURM_STEP_NUM_TASKS']} given, "
            f"{', '.join(missing)} missing; start the ranks with srun, which sets them all"
        )
    world = _number(given, "SLURM_STEP_NUM_TASKS", least=1)
    step = given.get("SLURM_STEP_ID", "0")
    # Two jobs on one node must not meet, nor a requeued job what is left of its last start: the port follows from
    # job, step and restart, the same on every rank; below 32768, where the system takes ports for itself.
    again = given.get("SLURM_RESTART_COUNT", "0")
    number = [int(text) if text.isdigit() else 0 for text in (given["SLURM_JOB_ID"], step, again)]
    port = 20000 + (number[0] * 31 + number[1] * 7 + number[2]) % 12000
    return Place(
        rank=_number(given, "SLURM_PROCID", below=("SLURM_STEP_NUM_TASKS", world)),
        world=world,
        local_rank=_number(given, "SLURM_LOCALID", below=("SLURM_STEP_NUM_TASKS", world)),
        local_world=_slurm_local_world(given, world),
        host=given.get("SLURMD_NODENAME") or socket.gethostname(),
        store_address=given.get("MASTER_ADDR") or _first_host(given["SLURM_STEP_NODELIST"]),
        store_port=_number(given, "MASTER_PORT", least=1) if given.get("MASTER_PORT") else port,
        launched_by="slurm",
    )


def _slurm_local_world(given: Mapping[str, str], world: int) -> int:
    """Tasks on this node, out of SLURM's short form "2(x3),1": 2 on each of three nodes, then 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", given.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = int(given["SLURM_NODEID"]) if _is_number(given.get("SLURM_NODEID")) else 0
    return counts[node] if node < len(counts) else world


def _first_host(nodes: str) -> str:
    """The first host of SLURM's list: "gpu[003-007,9],cpu1" → "gpu003"."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?", nodes)
    if not match:
        raise ConfigError(
            f"SLURM_STEP_NODELIST={nodes!r}: no host name found; set MASTER_ADDR to the first host"
        )
    return match[1] + (match[2] or "")


def _is_number(text: str | None) -> bool:
    return text is not None and text.isdigit()


def _number(
    given: Mapping[str, str], name: str, *, least: int = 0, below: tuple[str, int] | None = None
) -> int:
    text = given[name]
    if not _is_number(text) or int(text) < least:
        raise ConfigError(f"environment: {name}={text!r}; want a whole number of at least {least}")
    if below and int(text) >= below[1]:
        raise ConfigError(f"environment: {name}={text} but {below[0]}={below[1]}; want 0 to {below[1] - 1}")
    return int(text)
