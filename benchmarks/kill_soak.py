"""Does a run that was killed at a random moment, and gone on with, end with the bits of one that nobody stopped?

Each trial draws a mesh, a victim (one rank, the launcher, or all processes at once: kill -9) and a moment of the run,
from its start to its export; the same command then goes on. The weights of the artifact are compared, bit for bit, with
those of the unbroken run on the same mesh. Network surgery with masks, dense copies and Adam is what is resumed.

    python benchmarks/kill_soak.py              30 trials over five meshes
    python benchmarks/kill_soak.py --trials 3   a short look
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CONFIG = """
model: lenet_300_100
data: {source: digits, batch: 256, transform: {flatten: true}}
optimizer: {name: adam, lr: 0.002}
phases:
  - {name: dense, steps: 20}
  - {name: surgery, steps: 120, techniques: [{name: pruning.network_surgery, sparsity: 0.8}]}
checkpoint: {every: 20, keep_best: false}
export: [packed]
"""
MESHES = (
    ("parallel.replicate=2",),
    ("parallel.shard=2",),
    ("parallel.tensor=2",),
    ("parallel.pipeline=2", "parallel.microbatches=2"),
    ("parallel.shard=2", "parallel.tensor=2"),
)
VICTIMS = ("rank 0", "rank 1", "launcher", "all")
_LONGEST = 300.0  # seconds that one start may take before it counts as hanging


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was drawn, and what came of it."""

    mesh: tuple[str, ...]
    victim: str
    after: float  # seconds from the start
    killed: bool  # False: the run had ended by then
    same: bool
    output: str


def unbroken(folder: Path, mesh: tuple[str, ...]) -> tuple[bytes, float]:
    """The weights of a run that nobody stops, and the seconds that it takes."""
    began, name = time.monotonic(), re.sub(r"[^\w-]", "-", "-".join(("unbroken", *mesh)))
    run = start(folder, name, mesh)
    output = run.communicate(timeout=_LONGEST)[0]
    if run.returncode:
        raise RuntimeError(f"the unbroken run failed:\n{output}")
    return weights(folder, name), time.monotonic() - began


def trial(
    folder: Path, name: str, mesh: tuple[str, ...], reference: bytes, *, victim: str, after: float
) -> Trial:
    """One run, killed once after so many seconds, and gone on with."""
    run = start(folder, name, mesh)
    try:
        run.wait(after)
        killed = False
    except subprocess.TimeoutExpired:
        killed = True
        kill(run, folder / "runs" / name, victim)
    said = run.communicate(timeout=_LONGEST)[0]
    again = start(folder, name, mesh)
    said += again.communicate(timeout=_LONGEST)[0]
    same = again.returncode == 0 and weights(folder, name) == reference
    return Trial(mesh=mesh, victim=victim, after=after, killed=killed, same=same, output=said)


def kill(run: "subprocess.Popen[str]", folder: Path, victim: str) -> None:
    """kill -9, as nobody can prepare for."""
    ranks = processes(folder)
    if victim in ("launcher", "all"):
        victims = [run.pid, *(ranks if victim == "all" else [])]
    else:
        victims = ranks[int(victim[-1]) :][:1] or [run.pid]  # no rank yet: then the launcher is all there is
    for process in victims:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def processes(folder: Path) -> list[int]:
    """Process ids of the ranks that the newest start has noted in its logs."""
    logs = sorted(folder.glob("logs/rank-*.log"))
    found = [re.findall(r"^── .* process (\d+)$", log.read_text(), re.MULTILINE) for log in logs]
    return [int(numbers[-1]) for numbers in found if numbers]


def start(folder: Path, name: str, mesh: tuple[str, ...]) -> "subprocess.Popen[str]":
    """`forgepress train` in `folder`."""
    (folder / "soak.yaml").write_text(CONFIG)
    words = [sys.executable, "-m", "forgepress.launch", "train", "soak.yaml", f"name={name}", *mesh]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def weights(folder: Path, name: str) -> bytes:
    """The packed artifact's bytes."""
    return (folder / "runs" / name / "artifacts" / "packed" / "model.safetensors").read_bytes()


def main() -> int:
    """Runs the trials and writes results/kill_soak.json; 1 where one ended with other weights."""
    from forgepress.benchmarks import _result

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, done = random.Random(asked.seed), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        meshes = MESHES[: asked.trials]
        references = {mesh: unbroken(folder, mesh) for mesh in meshes}
        while sum(each.killed for each in done) < asked.trials and len(done) < 2 * asked.trials:
            mesh = meshes[len(done) % len(meshes)]
            reference, seconds = references[mesh]
            victim, after = draw.choice(VICTIMS), seconds * draw.uniform(0.2, 0.95)
            done.append(trial(folder, f"trial-{len(done)}", mesh, reference, victim=victim, after=after))
            last = done[-1]
            print(
                f"{' '.join(last.mesh)}: {last.victim} after {last.after:.1f} s: same {last.same}", flush=True
            )
            if not last.same:
                print(last.output)
    killed = [each for each in done if each.killed]
    rows = [
        {"case": "runs killed at a random moment", "value": len(killed), "unit": ""},
        {
            "case": "of them ended with the bits of the unbroken run",
            "value": sum(e.same for e in killed),
            "unit": "",
        },
    ]
    _result.write(
        __file__, "Does a killed run end with the same bits?", rows, meshes=[list(m) for m in meshes]
    )
    return int(not all(each.same for each in done))


if __name__ == "__main__":
    sys.exit(main())
