"""Is training on the grid better than quantizing afterwards, at 8, 4 and 2 bits of weights?

Takes the network of examples/cifar_vgg.yaml and, for each width and seed, trains
examples/cifar_quantization.yaml on, or only calibrates it. Activations have 8 bits. Finished runs are not repeated.
"""

import argparse
import sys
from pathlib import Path

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write

BITS = (8, 4, 2)


def main() -> int:
    """Train what is missing, write results/cifar_quantization.json."""
    given = arguments()
    dense = _runs.error_of(_runs.cifar_network(given.runs, 0, given.dense_epochs)["artifacts"][0]["metrics"])
    rows = [_runs.row("test error in float", [dense], "%")]
    for bits in BITS:
        after = [quantized(given.runs, bits, seed, CALIBRATED) for seed in given.seeds[:1]]
        aware = [quantized(given.runs, bits, seed, AWARE[bits], given.steps) for seed in given.seeds]
        rows += [
            _runs.row(f"{bits} bits, quantized afterwards: test error", after, "%"),
            _runs.row(f"{bits} bits, trained on the grid: test error", aware, "%"),
            _runs.row(
                f"{bits} bits, trained on the grid: change from float", [e - dense for e in aware], "points"
            ),
        ]
    write(__file__, "Is training on the grid better than quantizing afterwards?", rows, seeds=given.seeds)
    return 0


CALIBRATED = "quantization.post_training, activations: mse, weight_range: mse"
LEARNED = "quantization.aware_training, step_size: learned"
AWARE = {8: "quantization.aware_training", 4: LEARNED, 2: LEARNED}


def quantized(runs: Path, bits: int, seed: int, technique: str, steps: int = 0) -> float:
    """Test error of the reloaded artifact in percent; `steps` 0: eight batches are looked at."""
    phase = (
        f"{{name: quantize, steps: {steps or 8}, techniques: [{{name: {technique}, weight_bits: {bits}}}]}}"
    )
    name = f"cifar_{bits}bit-{'aware' if steps else 'after'}-{seed}"
    summary = _runs.train("cifar_quantization.yaml", runs, name, [f"seed={seed}", f"phases=[{phase}]"])
    return _runs.error_of(summary["artifacts"][0]["metrics"])


def arguments() -> argparse.Namespace:
    """Folder of the runs, seeds, and how long to train."""
    parser = _runs.parser(__doc__)
    parser.add_argument("--steps", type=int, default=782, help="of training on the grid; 391 are one epoch")
    parser.add_argument("--dense-epochs", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
