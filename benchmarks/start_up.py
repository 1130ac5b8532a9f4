"""How long until the first step: `forgepress train` against a script of one's own under torchrun?

Two ranks on scikit-learn's digits, one step each. The peer imports torch alone and does the least that leads there: it
draws a batch instead of reading one, builds LeNet-300-100, wraps it in DDP, takes one step of Adam. Seconds are of the
clock, from the command to the end of the first step as the program itself tells it, and of the processors over all
processes to the end. The two take turns. `forgepress --help` is what a person waits for at a prompt.

    python benchmarks/start_up.py                 seven turns
    python benchmarks/start_up.py --turns 1       a short look
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from forgepress.benchmarks import _result

_LONGEST = 300.0  # seconds that one start may take before it counts as hanging
ROOT = Path(__file__).resolve().parent.parent
PEER = """
import os
import time

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
x, y = torch.rand(64, 64), torch.randint(10, (64,))
model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
model = DistributedDataParallel(model)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
nn.functional.cross_entropy(model(x), y).backward()
optimizer.step()
if rank == 0:
    print("first step", time.time(), flush=True)
torch.distributed.destroy_process_group()
"""
METRIC = '''
"""Says when it is first asked for, which is after the first step."""
import time

def said(outputs, columns):
    print("first step", time.time(), flush=True)
    return outputs[:, 0]
'''


def ours(folder: Path, number: int) -> list[str]:
    """The demo for one step, evaluated after it."""
    settings = [
        "phases=[{name: dense, steps: 1}]",
        "export=[]",
        f"name=run-{number}",
        "checkpoint.keep_best=false",
    ]
    evaluate = "evaluate={metrics: ['said:said'], best: {metric: 'said:said'}}"
    config = str(ROOT / "examples" / "demo.yaml")
    return [sys.executable, "-m", "forgepress.launch", "train", config, *settings, evaluate, "--ranks", "2"]


def theirs(folder: Path, number: int) -> list[str]:
    """The peer's script under torchrun."""
    (folder / "peer.py").write_text(PEER)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [sys.executable, *torchrun, str(folder / "peer.py")]


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """(seconds until the first step, seconds of processors in all)."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_LONGEST
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("first step")]
    if done.returncode or not told:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return told[0] - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def helped(folder: Path) -> float:
    """Seconds of `forgepress --help`."""
    began = time.time()
    command = [sys.executable, "-m", "forgepress.launch", "--help"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return time.time() - began


def row(case: str, values: list[float], unit: str = "s") -> dict[str, object]:
    """The middle of several measurements, and their ends."""
    return {
        "case": case,
        "value": round(statistics.median(values), 3),
        "unit": unit,
        "low": round(min(values), 3),
        "high": round(max(values), 3),
        "repeats": len(values),
    }


def main() -> int:
    """Take turns, write results/start_up.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7)
    turns: int = parser.parse_args().turns
    cases: dict[str, Callable[[Path, int], list[str]]] = {
        "forgepress train, 2 ranks": ours,
        "torchrun, a script that imports torch alone": theirs,
    }
    found: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "said.py").write_text(METRIC)
        for command in cases.values():
            measure(command(folder, -1), folder)  # files come into the system's memory
        for turn in range(turns):
            for case, command in cases.items():
                found[case].append(measure(command(folder, turn), folder))
        helps = [helped(folder) for _ in range(turns)]
    rows = [row(f"{case}: first step after", [wall for wall, _ in values]) for case, values in found.items()]
    rows += [row(f"{case}: processors' time", [used for _, used in values]) for case, values in found.items()]
    mine, peers = (row["value"] for row in rows[:2])
    rows.append({"case": "first step, forgepress / torchrun", "value": round(mine / peers, 3), "unit": ""})  # type: ignore[operator]
    rows.append(row("forgepress --help", helps))
    _result.write(__file__, "How long until the first step?", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
