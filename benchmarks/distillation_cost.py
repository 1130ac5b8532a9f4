"""What does a teacher add to a training step, and how much of it does a rank hold?

LeNet-5 learns from a larger LeNet-5 on MNIST, batch 128, one process with one thread: the whole Trainer with the
teacher run in every step, with its answers kept by row (measured from the second epoch on), without a teacher, and a
loop written by hand that runs the teacher's forward pass and the student's step. The peers take turns; a ratio is taken
within a round, the table shows its median and quartiles. Memory: the teacher's weights on each rank of a mesh.
"""

import argparse

from forgepress.benchmarks import _distillation, _result
from forgepress.benchmarks._turns import milliseconds, ratios, take_turns

RUNS = {
    "by hand": _distillation.by_hand,
    "distillation.logits": _distillation.distilling,
    "with cache": _distillation.cached,
    "alone": _distillation.alone,
}
RATIOS = [("distillation.logits", "by hand"), ("with cache", "alone"), ("distillation.logits", "alone")]
MESHES = [{"shard": 2}, {"pipeline": 2}, {"replicate": 2}]


def main() -> None:
    """Measure and write results/distillation_cost.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40, help="of one turn")
    options = parser.parse_args()
    (whole,) = _distillation.teacher_bytes({"replicate": 1})
    rows = []
    for degrees in MESHES:
        most = max(_distillation.teacher_bytes(dict(degrees)))
        mesh = ", ".join(f"{axis}={degree}" for axis, degree in degrees.items())
        rows.append(
            {
                "case": f"teacher on the fullest rank / whole teacher, {mesh}",
                "value": most / whole,
                "unit": "×",
            }
        )
    times = take_turns(RUNS, steps=options.steps, rounds=options.rounds)
    rows.append({"case": "a step of the student alone", **milliseconds(times["alone"].wall)})
    for ours, theirs in RATIOS:
        rows.append({"case": f"{ours} / {theirs}", **ratios(times[ours].wall, times[theirs].wall)})
        cpu = ratios(times[ours].cpu, times[theirs].cpu)
        rows.append({"case": f"{ours} / {theirs}, processor time", **cpu})
    question = "What does a teacher add to a step (LeNet-5 and one about four times as large, batch 128)?"
    every_round = {name: vars(timing) for name, timing in times.items()}
    _result.write(__file__, question, rows, milliseconds_a_step=every_round)


if __name__ == "__main__":
    main()
