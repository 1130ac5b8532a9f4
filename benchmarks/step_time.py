"""How long does a training step take in the whole Trainer, against a loop written by hand and against peers?

LeNet-300-100 on MNIST (random numbers of its shape where it is not there), global batch 128, fused Adam, one thread
a process; one process, and DDP on two gloo ranks. All loops note the loss every 100 steps and save nothing. They
take turns of one epoch; a ratio is taken within a round, the table shows its median and quartiles.

Three loops are written by hand. "DataLoader" is what people write. "indexed" is the fastest plain loop that we know:
all rows in memory, torch.randperm, index_select; nothing in it looks at gradients, keeps metrics or can be resumed.
"indexed, flushed" is that one with torch.set_flush_denormal(True), which the Trainer sets too and few people know:
it shows what the Trainer's own work costs, apart from what that setting gains on MNIST's empty margins.
Peers read through torch's DataLoader without workers, the usual choice for tensors in memory.
"""

import argparse

from forgepress.benchmarks import _loops, _result
from forgepress.benchmarks._turns import milliseconds, ratios, take_turns

PEERS = {
    "by hand, indexed": _loops.plain_indexed,
    "by hand, indexed, flushed": _loops.plain_tiny_as_zero,
    "by hand, DataLoader": _loops.plain_loader,
    "forgepress": _loops.forgepress,
    "Accelerate": _loops.accelerate,
    "Lightning": _loops.lightning,
    "transformers Trainer": _loops.transformers,
}


def main() -> None:
    """Measure and write results/step_time.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=469, help="of one turn; 469 are an epoch")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--show", action="store_true", help="print only")
    options = parser.parse_args()
    rows, every_round = [], {}
    for ranks in options.ranks:
        peers = {name: PEERS[name] for name in options.peers}
        times = take_turns(peers, ranks=ranks, steps=options.steps, rounds=options.rounds)
        place = "1 process" if ranks == 1 else f"DDP on {ranks} ranks"
        for base in ("by hand, indexed", "by hand, indexed, flushed", "by hand, DataLoader"):
            if base not in times:
                continue
            rows.append({"case": f"{place}: {base}", **milliseconds(times[base].wall)})
            for name in times:
                if name == "forgepress" or (base == "by hand, indexed" and not name.startswith("by hand")):
                    case = f"{place}: {name} / {base}"
                    rows.append({"case": case, **ratios(times[name].wall, times[base].wall)})
                    if name == "forgepress":
                        case = f"{case}, processor time"
                        rows.append({"case": case, **ratios(times[name].cpu, times[base].cpu)})
        every_round[place] = {name: vars(timing) for name, timing in times.items()}
    if options.show:
        for row in rows:
            print(f"{row['case']:<70} {row['value']:8.4f} {row['low']:8.4f} {row['high']:8.4f} {row['unit']}")
        return
    question = "How long does a training step take (LeNet-300-100, batch 128, fused Adam)?"
    _result.write(__file__, question, rows, milliseconds_a_step=every_round)


if __name__ == "__main__":
    main()
