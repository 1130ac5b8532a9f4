"""How does what the Trainer adds to a step grow with the number of parameter tensors and of ranks?

Narrow matrices in a chain, 10 to 2,000 parameter tensors with hardly any arithmetic, so that what is paid for each
tensor shows; batch 128, fused Adam, DDP on gloo ranks with one thread each. "Added" is a rank's processor time a step
above that of a loop written by hand, taken within a round: on more ranks than cores the wall clock says nothing.
"""

import argparse
import statistics

from forgepress.benchmarks import _growth, _result
from forgepress.benchmarks._turns import spread, take_turns

PRUNING = {"name": "pruning.magnitude", "sparsity": 0.8}


def main() -> None:
    """Measure and write results/overhead_growth.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=60, help="of one turn")
    parser.add_argument("--tensors", type=int, nargs="+", default=[10, 100, 500, 2000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--show", action="store_true", help="print only")
    options = parser.parse_args()
    places = [(tensors, 1) for tensors in options.tensors]
    places += [(min(100, max(options.tensors)), ranks) for ranks in options.ranks if ranks > 1]
    rows, every_round = [], {}
    for tensors, ranks in places:
        peers = _growth.peers(tensors, PRUNING)
        times = take_turns(peers, ranks=ranks, steps=options.steps, rounds=options.rounds)
        place = f"{tensors} tensors, {ranks} rank{'s' * (ranks > 1)}"
        for name in [name for name in peers if name != "by hand"]:
            added = [ours - hand for ours, hand in zip(times[name].cpu, times["by hand"].cpu, strict=True)]
            each = sorted(1e3 * value / tensors for value in added)
            rows.append({"case": f"{place}: {name}, added", "value": statistics.median(added), "unit": "ms"})
            rows.append(
                {
                    "case": f"{place}: {name}, added for each tensor",
                    "value": statistics.median(each),
                    "unit": "µs",
                    **spread(each),
                }
            )
        every_round[place] = {name: vars(timing) for name, timing in times.items()}
    if options.show:
        for row in rows:
            print(f"{row['case']:<70} {row['value']:10.4f} {row['unit']}")
        return
    question = "How does what the Trainer adds to a step grow with parameter tensors and ranks?"
    _result.write(__file__, question, rows, milliseconds_a_step=every_round)


if __name__ == "__main__":
    main()
