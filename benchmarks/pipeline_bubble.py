"""How long do the ranks of a pipeline wait, against what its schedule's theory says?

Two gloo ranks, one stage each, evenly split: twelve equal layers, no embedding and no head. Micro-batches of one size,
4 to 32 of them in a step. A rank waits while its thread is not on a processor: its processor time is taken from the
wall clock's. Theory for 1F1B and GPipe: (p - 1) / (m + p - 1), stages of equal cost and free communication.
"""

import argparse
import functools
import time
from typing import Any

import torch
from forgepress.benchmarks import _result
from forgepress.benchmarks._turns import Turns, take_turns
from forgepress.parallel import Layout, Mesh, NativeEngine, join
from forgepress.parallel.schedules import bubble
from torch import Tensor, nn

WIDTH, LAYERS, ROWS = 640, 12, 256  # rows of one micro-batch
SCHEDULES = ("gpipe", "1f1b")


class Layer(nn.Module):
    """A matrix and what follows it; all layers cost the same."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.matrix(x))


def steps(turns: Turns, schedule: str, microbatches: int) -> None:
    """Forward and backward of a stack of layers, without an optimizer."""
    torch.manual_seed(0)
    names = [f"layer{number}" for number in range(LAYERS)]
    stack = nn.Sequential()
    for name in names:
        stack.add_module(name, Layer())
    with join("cpu", rank=turns.rank, ranks=turns.ranks, meeting=turns.meeting) as device:
        mesh = Mesh.build({"pipeline": 2}, device=device)
        half = LAYERS // 2
        engine = NativeEngine(
            stack,
            Layout(order=tuple(names)),
            mesh,
            schedule=schedule,
            microbatches=microbatches,
            stages=[names[:half], names[half:]],
        )
        # The first stage would have no gradient of its input to compute, and be done sooner than the second.
        x = torch.randn(microbatches * ROWS, WIDTH, requires_grad=True)
        turns.cpu = time.thread_time  # other threads send and receive
        while True:
            turns()
            engine.zero_grad()
            engine.forward_backward({"x": x}, None, lambda columns: columns["x"], _loss)


def _loss(outputs: Tensor, columns: Any, valid: Any) -> Tensor:
    return outputs.square().mean()


def main() -> None:
    """Measure and write results/pipeline_bubble.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="of one turn")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=SCHEDULES)
    parser.add_argument("--show", action="store_true", help="print only")
    options = parser.parse_args()
    rows = []
    for schedule in options.schedules:
        for count in options.microbatches:
            peer = functools.partial(steps, schedule=schedule, microbatches=count)
            timing = take_turns({"here": peer}, ranks=2, steps=options.steps, rounds=options.rounds)["here"]
            waits = sorted(1.0 - cpu / wall for cpu, wall in zip(timing.cpu, timing.wall, strict=True))
            theory = bubble(schedule, 2, count, 1)
            measured = waits[len(waits) // 2]
            case = f"{schedule}, {count} micro-batches"
            rows.append({"case": f"{case}: share of the step waited", "value": measured, "unit": ""})
            rows.append({"case": f"{case}: by theory", "value": theory, "unit": ""})
            rows.append(
                {
                    "case": f"{case}: step / step by theory",
                    "value": (1 - theory) / (1 - measured),
                    "unit": "×",
                }
            )
    if options.show:
        for row in rows:
            print(f"{row['case']:<70} {row['value']:8.4f} {row['unit']}")
        return
    _result.write(__file__, "How long do pipeline ranks wait, against theory?", rows)


if __name__ == "__main__":
    main()
