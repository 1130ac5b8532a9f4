"""What does pruning add to a training step?

LeNet-5 (431,080 parameters), batch 128, fused Adam, one process with one thread, the whole Trainer with and without
a technique. The phase has 20,000 steps and is measured at its beginning, where masks are renewed all the time: later
steps cost less. The runs take turns of 80 steps (magnitude renews every 10, surgery every 16); a ratio is taken
within a round, the table shows its median and quartiles.
"""

import argparse

from forgepress.benchmarks import _loops, _result
from forgepress.benchmarks._turns import milliseconds, ratios, take_turns

RUNS = {
    "without": _loops.without_technique,
    "pruning.magnitude": _loops.with_magnitude,
    "pruning.network_surgery": _loops.with_surgery,
}


def main() -> None:
    """Measure and write results/technique_overhead.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=80, help="of one turn")
    options = parser.parse_args()
    times = take_turns(RUNS, steps=options.steps, rounds=options.rounds)
    rows = [{"case": "a step without a technique", **milliseconds(times["without"].wall)}]
    for name in list(RUNS)[1:]:
        rows.append({"case": f"{name} / without", **ratios(times[name].wall, times["without"].wall)})
        case = f"{name} / without, processor time"
        rows.append({"case": case, **ratios(times[name].cpu, times["without"].cpu)})
    question = "What does pruning add to a step (LeNet-5, 431,080 parameters, batch 128)?"
    every_round = {name: vars(timing) for name, timing in times.items()}
    _result.write(__file__, question, rows, milliseconds_a_step=every_round)


if __name__ == "__main__":
    main()
