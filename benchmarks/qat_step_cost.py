"""What does quantization-aware training add to a training step, and what does torchao's?

A GPT of 4 layers and width 128, 32 rows of 64 characters a step, one process with one thread, the whole Trainer in
every run: without a technique, with INT8 weights per channel, with INT8 weights and inputs, and with torchao's INT8
training in the place of the technique. In one piece and in 8 micro-batches. The runs take turns; a ratio is taken
within a round, the table shows its median and quartiles.
"""

import argparse

from forgepress.benchmarks import _qat, _result
from forgepress.benchmarks._turns import milliseconds, ratios, take_turns

COMPARED = (
    ("weights", "without"),
    ("weights and inputs", "without"),
    ("torchao, weights", "without"),
    ("torchao, weights and inputs", "without"),
    ("weights and inputs", "torchao, weights and inputs"),
)


def main() -> None:
    """Measure and write results/qat_step_cost.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="of one turn")
    options = parser.parse_args()
    rows, every_round = [], {}
    for pieces in (1, 8):
        times = take_turns(_qat.peers(pieces), steps=options.steps, rounds=options.rounds, settle=1)
        rows.append(
            {"case": f"a step without, {pieces} micro-batches", **milliseconds(times["without"].wall)}
        )
        for ours, theirs in COMPARED:
            case = f"{ours} / {theirs}, {pieces} micro-batches"
            rows.append({"case": case, **ratios(times[ours].wall, times[theirs].wall)})
            rows.append({"case": f"{case}, processor time", **ratios(times[ours].cpu, times[theirs].cpu)})
        every_round[str(pieces)] = {name: vars(timing) for name, timing in times.items()}
    question = "What does INT8 training add to a step (GPT, 4 layers, width 128, 2,048 characters a step)?"
    _result.write(__file__, question, rows, milliseconds_a_step=every_round)


if __name__ == "__main__":
    main()
