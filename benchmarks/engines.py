"""What does the Trainer add to a step of DeepSpeed's and Accelerate's own?

784 → 1024 → 1024 → 10 on MNIST (random numbers of its shape where it is not there), global batch 128, torch's fused
Adam, two gloo ranks with one thread each. By hand is each library's documented loop, rows from memory, with its own
defaults (our engine asks DeepSpeed for a smaller gradient buffer, and for no norm beside its own); "forgepress" is
the whole Trainer with that engine, and once more with magnitude pruning on, whose exchange of rows and shares it shows.
The loops take turns; a ratio is taken within a round, the table shows its median and quartiles.
"""

import argparse

from forgepress.benchmarks import _engines, _result
from forgepress.benchmarks._turns import milliseconds, ratios, take_turns

MAGNITUDE = {"name": "pruning.magnitude", "sparsity": 0.8}
GROUPS = {
    "ZeRO-2": {
        "by hand": _engines.by_hand(2),
        "forgepress": _engines.zero(2),
        "forgepress, pruning": _engines.zero(2, MAGNITUDE),
    },
    "ZeRO-3": {
        "by hand": _engines.by_hand(3),
        "forgepress": _engines.zero(3),
        "forgepress, pruning": _engines.zero(3, MAGNITUDE),
    },
    "Accelerate (DDP)": {"by hand": _engines.accelerate, "forgepress": _engines.prepared()},
}


def main() -> None:
    """Measure and write results/engines.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=100, help="of one turn")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--show", action="store_true", help="print only")
    options = parser.parse_args()
    rows, every_round = [], {}
    for group in options.groups:
        times = take_turns(GROUPS[group], ranks=2, steps=options.steps, rounds=options.rounds)
        rows.append({"case": f"{group}: by hand", **milliseconds(times["by hand"].wall)})
        for name in GROUPS[group]:
            if name != "by hand":
                case = f"{group}: {name} / by hand"
                rows.append({"case": case, **ratios(times[name].wall, times["by hand"].wall)})
                rows.append(
                    {"case": f"{case}, processor time", **ratios(times[name].cpu, times["by hand"].cpu)}
                )
        every_round[group] = {name: vars(timing) for name, timing in times.items()}
    if options.show:
        for row in rows:
            print(f"{row['case']:<60} {row['value']:8.4f} {row['low']:8.4f} {row['high']:8.4f} {row['unit']}")
        return
    _result.write(
        __file__,
        "What does the Trainer add to DeepSpeed's and Accelerate's own steps?",
        rows,
        milliseconds_a_step=every_round,
    )


if __name__ == "__main__":
    main()
