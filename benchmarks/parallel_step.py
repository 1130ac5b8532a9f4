"""What does a step of our FSDP2, tensor and pipeline parallelism take against torch code written for just that?

A GPT of 0.8 million weights (4 layers, width 128, 64 tokens), global batch 32, torch's fused Adam, two gloo ranks with
one thread each. By hand is what torch's own tutorials write for the one axis, tokens in memory; "forgepress" is the
whole Trainer, which also looks at gradients. The loops take turns; a ratio is taken within a round, the table shows its
median and quartiles.
"""

import argparse

from forgepress.benchmarks import _gpt_loops, _result
from forgepress.benchmarks._turns import milliseconds, ratios, take_turns

GROUPS = {
    "FSDP2": (_gpt_loops.fsdp, _gpt_loops.on(shard=2)),
    "tensor": (_gpt_loops.tensor, _gpt_loops.on(tensor=2)),
    "pipeline (1F1B, 4 micro-batches)": (
        _gpt_loops.pipeline,
        _gpt_loops.on(pipeline=2, microbatches=_gpt_loops.MICROBATCHES),
    ),
}


def main() -> None:
    """Measure and write results/parallel_step.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=25, help="of one turn")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--show", action="store_true", help="print only")
    options = parser.parse_args()
    rows, every_round = [], {}
    for group in options.groups:
        by_hand, ours = GROUPS[group]
        peers = {"by hand": by_hand, "forgepress": ours}
        times = take_turns(peers, ranks=2, steps=options.steps, rounds=options.rounds)
        rows.append({"case": f"{group}: by hand", **milliseconds(times["by hand"].wall)})
        case = f"{group}: forgepress / by hand"
        rows.append({"case": case, **ratios(times["forgepress"].wall, times["by hand"].wall)})
        cpu = ratios(times["forgepress"].cpu, times["by hand"].cpu)
        rows.append({"case": f"{case}, processor time", **cpu})
        every_round[group] = {name: vars(timing) for name, timing in times.items()}
    if options.show:
        for row in rows:
            print(f"{row['case']:<70} {row['value']:8.4f} {row['low']:8.4f} {row['high']:8.4f} {row['unit']}")
        return
    question = "What does a step on one axis take against hand-written torch code of the same parallelism?"
    _result.write(__file__, question, rows, milliseconds_a_step=every_round)


if __name__ == "__main__":
    main()
