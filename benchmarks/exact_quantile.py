"""Is the exact quantile over all ranks faster than gathering all for torch.kthvalue, and what memory does it take?

100 million float32 values, half of them on each of two gloo ranks with one thread; the 95 % quantile of magnitudes.
The two take turns; both give the same bits, which is checked. The gathering side is given its gather into a buffer
that is there already, and one rank alone looks for the value. Memory: how far the peak of a rank's resident memory
rises above where it stood before the call, in a process that has made no other, as a share of its local values.
"""

import argparse
import multiprocessing
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
from forgepress.benchmarks import _result
from forgepress.benchmarks._turns import ratios, spread
from forgepress.compression.quantile import exact_quantile
from forgepress.parallel import join


def main() -> None:
    """Measure and write results/exact_quantile.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--values", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    ours, theirs, grown = _measure(options.values, options.rounds)
    rows = [
        {"case": "exact_quantile", "value": sorted(ours)[len(ours) // 2], "unit": "s", **spread(ours)},
        {"case": "gather and kthvalue", "value": sorted(theirs)[len(theirs) // 2], "unit": "s", **spread(theirs)},
        {"case": "exact_quantile / gather and kthvalue", **ratios(ours, theirs)},
        {"case": "exact_quantile: extra memory of a rank / its values", "value": 100 * max(grown), "unit": "%"},
    ]  # fmt: skip
    question = f"How long does an exact quantile of {options.values / 1e6:.0f} M values on 2 ranks take?"
    _result.write(__file__, question, rows, seconds={"exact_quantile": ours, "gather and kthvalue": theirs})


def _measure(values: int, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of ours and of theirs in each round, and each rank's growth as a share."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        place = (f"file://{folder}/meeting", values // 2, rounds, answers)
        processes = [context.Process(target=_rank, args=(rank, *place)) for rank in range(2)]
        for process in processes:
            process.start()
        found = [answers.get() for _ in processes]
        for process in processes:
            process.join()
    first = next(answer for answer in found if answer["rank"] == 0)
    return first["ours"], first["theirs"], [answer["grown"] for answer in found]


def _rank(rank: int, meeting: str, count: int, rounds: int, answers: Any) -> None:
    torch.set_num_threads(1)
    with join("cpu", rank=rank, ranks=2, meeting=meeting, timeout=600):
        values = torch.randn(count, generator=torch.Generator().manual_seed(rank))
        k = round(0.95 * 2 * count)
        grown = _growth(values, k) / (values.numel() * values.element_size())
        whole = torch.empty(2 * count if rank == 0 else 0)
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for number in range(rounds):
            for way in sorted(times, reverse=bool(number % 2)):
                dist.barrier()
                begin = time.perf_counter()
                result = _ours(values, k) if way == "ours" else _theirs(values, whole, k, rank)
                if rank == 0:
                    times[way].append(time.perf_counter() - begin)
                    _same(result, times, way)
        answers.put({"rank": rank, "grown": grown, **times})
        dist.barrier()


def _ours(values: torch.Tensor, k: int) -> float:
    return float(exact_quantile([values], k, _sum))


def _sum(counts: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(counts)
    return counts


def _theirs(values: torch.Tensor, whole: torch.Tensor, k: int, rank: int) -> float:
    parts = list(whole.split(values.numel())) if rank == 0 else None
    dist.gather(values, parts, dst=0)
    return float(whole.abs_().kthvalue(k).values) if rank == 0 else 0.0


_found: set[float] = set()


def _same(result: float, times: dict[str, list[float]], way: str) -> None:
    _found.add(result)
    if len(_found) > 1:
        raise RuntimeError(f"{way} gave {result}, after {sorted(_found)}: want the same bits every time")


def _growth(values: torch.Tensor, k: int) -> int:
    """Bytes by which the peak of this process' resident memory rises in one call."""
    dist.all_reduce(torch.zeros(1 << 16))  # gloo's own buffers
    exact_quantile([values[:1000]], 10, _sum)  # code and constants are read in
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew at what is resident now
    before = _peak()
    _ours(values, k)
    return _peak() - before


def _peak() -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
