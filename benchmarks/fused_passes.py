"""What does a compiled pass save over torch's passes on a CPU?

The elementwise work of masks, splicing, weight grids and rounded inputs on as many float32 values as LeNet-5 has
weights (431,080), and the inputs of a layer of 128 features and 2,048 tokens; one thread, the same process in turns. A
ratio is taken within a round, the table shows its median and quartiles. `compression/fused.py` says what each does.
"""

import argparse
import time
from collections.abc import Callable

import torch
from forgepress.benchmarks import _result
from forgepress.benchmarks._turns import ratios
from forgepress.compression import fused

WEIGHTS = 431_080


def work() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    dense, scale = torch.randn(WEIGHTS) * 0.1, torch.full((440, 1), 1e-3)
    mask, rows = torch.rand(WEIGHTS) > 0.8, torch.randn(440, WEIGHTS // 440)
    inputs, step = torch.randn(2048, 128), torch.tensor(0.02)

    def rounded() -> object:
        found = fused.rounded(inputs, 128, 0.02, -128, 127)
        if found is None:  # torch's way, as the quantizer goes it
            found = inputs.amin(1), inputs.amax(1), (inputs / step).round_().clamp_(-128, 127).mul_(step)
        return found

    return {
        "a mask over weights": lambda: fused.masked_(dense, mask),
        "splicing a mask": lambda: fused.splice_(mask, dense, 0.09, 0.11),
        "weights on their grid": lambda: fused.snap_(rows, scale, -127, 127),
        "inputs on their grid, and their range": rounded,
    }


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Of one call, on the wall clock."""
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    return 1e3 * (time.perf_counter() - begin) / repeats


def main() -> None:
    """Measure and write results/fused_passes.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=20, help="of one turn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    compiled = fused.library
    if compiled() is None:
        raise SystemExit("no C compiler here, so there is nothing to compare")
    jobs, times = work(), {}
    for _ in range(given.rounds):
        for name, function in jobs.items():
            for kind, library in (("compiled", compiled), ("torch", lambda: None)):
                fused.library = library
                times.setdefault((name, kind), []).append(milliseconds(function, given.repeats))
    rows = [
        {
            "case": f"{name}: one pass / torch's passes",
            **ratios(times[name, "compiled"], times[name, "torch"]),
        }
        for name in jobs
    ]
    every_round = {f"{name}, {kind}": values for (name, kind), values in times.items()}
    question = "What does a compiled pass save over torch's passes on a CPU?"
    _result.write(__file__, question, rows, milliseconds_a_call=every_round)


if __name__ == "__main__":
    main()
