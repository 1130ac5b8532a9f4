"""What do pruning and penalties add to a training step?

LeNet-5 (431,080 parameters), batch 128, fused Adam, one process with one thread, the whole Trainer with and without
a technique; torch.nn.utils.prune against the plain loop that it is used in. The phase has 20,000 steps and is
measured at its beginning, where masks are renewed all the time: later steps cost less. The runs take turns of 80
steps (magnitude renews every 10, surgery every 16); a ratio is taken within a round, the table shows its median and
quartiles.
"""

import argparse

from forgepress.benchmarks import _loops, _result
from forgepress.benchmarks._pruned import PEERS, by_hand, by_hand_masked
from forgepress.benchmarks._turns import milliseconds, ratios, take_turns

RUNS = {"without": _loops.without_technique, **PEERS, "by hand": by_hand, "by hand, masked": by_hand_masked}


def main() -> None:
    """Measure and write results/technique_overhead.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=80, help="of one turn")
    options = parser.parse_args()
    times = take_turns(RUNS, steps=options.steps, rounds=options.rounds)
    rows = [{"case": "a step without a technique", **milliseconds(times["without"].wall)}]
    pairs = [(label, label, "without") for label in PEERS]
    pairs.append(("torch.nn.utils.prune in a plain loop", "by hand, masked", "by hand"))
    for label, ours, theirs in pairs:
        rows.append({"case": f"{label} / without", **ratios(times[ours].wall, times[theirs].wall)})
        case = f"{label} / without, processor time"
        rows.append({"case": case, **ratios(times[ours].cpu, times[theirs].cpu)})
    question = "What do pruning and penalties add to a step (LeNet-5, 431,080 parameters, batch 128)?"
    every_round = {name: vars(timing) for name, timing in times.items()}
    _result.write(__file__, question, rows, milliseconds_a_step=every_round)


if __name__ == "__main__":
    main()
