"""What do slimming and group lasso add to a training step, and what do Torch-Pruning's regularizers?

Three 3×3 convolutions with BatchNorm on MNIST, batch 128, fused Adam, one process with one thread, the whole Trainer in
every run; Torch-Pruning's `regularize` of its BNScalePruner and GroupNormPruner stands in the place of the technique.
The runs take turns; a ratio is taken within a round, the table shows its median and quartiles.
"""

import argparse

from forgepress.benchmarks import _result
from forgepress.benchmarks._slimming import PEERS
from forgepress.benchmarks._turns import milliseconds, ratios, take_turns


def main() -> None:
    """Measure and write results/slimming_step_cost.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="of one turn")
    options = parser.parse_args()
    times = take_turns(PEERS, steps=options.steps, rounds=options.rounds)
    rows = [{"case": "a step without", **milliseconds(times["without"].wall)}]
    for label in PEERS:
        if label != "without":
            rows.append({"case": f"{label} / without", **ratios(times[label].wall, times["without"].wall)})
            case = f"{label} / without, processor time"
            rows.append({"case": case, **ratios(times[label].cpu, times["without"].cpu)})
    question = "What does slimming add to a step (three convolutions with BatchNorm, batch 128)?"
    _result.write(__file__, question, rows, milliseconds_a_step={n: vars(t) for n, t in times.items()})


if __name__ == "__main__":
    main()
