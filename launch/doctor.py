"""Is this machine ready? One line for each thing a run needs: what was found, and what to do where it is not well."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .environment import read_place, threads_per_rank
from .network import interface_towards, interfaces

_LEAST_DISK, _LEAST_SHM = 5e9, 1e9  # bytes: a few checkpoints of a small model; NCCL's and loaders' buffers


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: `well` False is something that a run will trip over, None something that only some need."""

    what: str
    says: str
    well: bool | None = True
    advice: str = ""

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "BAD ", None: "–   "}[self.well]
        return f"{mark}{self.what:<14} {self.says}" + (f"\n    → {self.advice}" if self.advice else "")


def examine(folder: Path, *, ranks: int = 2) -> Iterator[Finding]:
    """All findings, each as soon as it is known. folder: where runs go; ranks: of the all-reduce that is tried."""
    yield Finding(what="python", says=f"{sys.version.split()[0]} ({sys.executable})")
    yield from _torch()
    yield from (_package(name) for name in ("accelerate", "deepspeed", "transformers", "onnxruntime"))
    yield _slurm()
    yield _environment()
    yield _space("disk", folder, _LEAST_DISK, "free space there, or put checkpoint.folder elsewhere")
    shm = Path("/dev/shm")
    if shm.is_dir():
        yield _space("/dev/shm", shm, _LEAST_SHM, "in a container: give it more (--shm-size, --ipc=host)")
    yield _interface()
    yield _threads()
    yield _clock(folder)
    yield _all_reduce(ranks)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding(what="torch", says=str(error), well=False, advice="pip install torch")
        return
    yield Finding(what="torch", says=torch.__version__)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        nccl = ".".join(str(part) for part in importlib.import_module("torch.cuda.nccl").version())
        yield Finding(what="cuda", says=f"{torch.version.cuda}, {len(names)} × {names[0]}, NCCL {nccl}")
    elif torch.version.cuda:
        yield Finding(
            what="cuda",
            says=f"torch is built for CUDA {torch.version.cuda}, but finds no GPU",
            well=None,
            advice="see that nvidia-smi lists one and CUDA_VISIBLE_DEVICES does not hide it; the CPU is used",
        )
    else:
        yield Finding(what="cuda", says="this torch is built without it: runs use the CPU", well=None)
    gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    advice = "" if gloo else "install a torch with torch.distributed and gloo"
    yield Finding(what="gloo", says="there" if gloo else "missing", well=gloo, advice=advice)


def _package(name: str) -> Finding:
    try:
        return Finding(what=name, says=version(name))
    except PackageNotFoundError:
        return Finding(what=name, says="not installed (only some configs need it)", well=None)


def _slurm() -> Finding:
    if not shutil.which("sbatch"):
        return Finding(what="slurm", says="no sbatch here (only `forgepress slurm` needs it)", well=None)
    try:
        found = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, timeout=20)
        nodes = subprocess.run(["sinfo", "-h", "-o", "%P %D %t"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(what="slurm", says=str(error), well=False, advice="ask whether slurmctld is up")
    if nodes.returncode:
        trouble = (nodes.stderr.strip() or "sinfo fails").splitlines()[-1]
        return Finding(
            what="slurm", says=trouble, well=False, advice="see SLURM_CONF and whether slurmctld is up"
        )
    states = "; ".join(nodes.stdout.split("\n")[:3]).strip("; ")
    return Finding(what="slurm", says=f"{found.stdout.strip()} (partition, nodes, state: {states})")


def _environment() -> Finding:
    from ..errors import ConfigError

    try:
        place = read_place()
    except ConfigError as error:
        return Finding(
            what="environment", says=str(error), well=False, advice="unset them, or set all of them"
        )
    return Finding(
        what="environment", says=f"launched by {place.launched_by}: rank {place.rank} of {place.world}"
    )


def _space(what: str, folder: Path, least: float, advice: str) -> Finding:
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    says = f"{free / 1e9:.1f} GB free at {there}" + ("" if writable else ", which cannot be written")
    well = writable and free >= least
    return Finding(what=what, says=says, well=well, advice="" if well else advice)


def _interface() -> Finding:
    given = {n: os.environ[n] for n in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if os.environ.get(n)}
    known = interfaces()
    wrong = [f"{n}={v}" for n, v in given.items() if known and v.strip("^=").split(",")[0] not in known]
    if wrong:
        there = ", ".join(known)
        return Finding(
            what="network", says=f"{wrong[0]}, but there is {there}", well=False, advice=f"unset {wrong[0]}"
        )
    if given:
        return Finding(what="network", says=", ".join(f"{n}={v}" for n, v in given.items()))
    chosen = interface_towards("192.0.2.1") or interface_towards("127.0.0.1")  # an address of documentations
    address = known.get(chosen or "", "?")
    return Finding(what="network", says=f"{chosen} ({address}) towards other hosts; lo between local ranks")


def _threads() -> Finding:
    given = os.environ.get("OMP_NUM_THREADS")
    cores = threads_per_rank(1)
    says = f"OMP_NUM_THREADS={given}" if given else f"{cores} cores, divided among the ranks of a host"
    return Finding(what="threads", says=says)


def _clock(folder: Path) -> Finding:
    """A file's time comes from its file system's host: on a cluster that is another clock than ours."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there) as probe:
            probe.write(b".")
            probe.flush()
            off = abs(os.stat(probe.name).st_mtime - time.time())
    except OSError as error:
        return Finding(what="clock", says=f"not compared: {error}", well=None)
    newest = max(Path(__file__).stat().st_mtime, 0.0)
    well = off < 5.0 and time.time() > newest - 86_400
    says = f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, {off:.1f} s off the file system's"
    return Finding(what="clock", says=says, well=well, advice="" if well else "set it by NTP on all hosts")


def _all_reduce(ranks: int) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding(what="all-reduce", says="not tried without torch", well=None)
    from .submit import RankFailed, submit

    began = time.monotonic()
    try:
        future = submit("forgepress.launch.doctor:sum_of_ranks", ranks=ranks, timeout=30.0)
        total = future.results(timeout=120)[0]
    except (RankFailed, TimeoutError) as error:
        advice = "see the interface above; FORGEPRESS_DEBUG=1 shows more"
        return Finding(what="all-reduce", says=str(error).splitlines()[0], well=False, advice=advice)
    well = total == sum(range(ranks))
    says = f"{ranks} ranks agree after {time.monotonic() - began:.1f} s, starts included"
    return Finding(what="all-reduce", says=says if well else f"gave {total}", well=well)


def sum_of_ranks(place: object = None) -> int:
    """Joins the others and sums everybody's number: what each rank of the trial does."""
    import torch
    import torch.distributed as dist

    from ..parallel import join

    here, rank, ranks = (getattr(place, name) for name in ("local_world", "rank", "world"))
    device = "cuda" if 0 < here <= torch.cuda.device_count() else "cpu"
    with join(device, rank=rank, ranks=ranks, timeout=30.0) as joined:
        value = torch.tensor(rank, device=joined)
        if ranks > 1:
            dist.all_reduce(value)
        return int(value)
