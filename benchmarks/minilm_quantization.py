"""Does MiniLM keep its accuracy on SST-2 with 8-bit weights and activations, and with 4-bit weights?

Takes the model of examples/minilm_sst2.yaml and, for each width and seed, trains examples/minilm_quantization.yaml on,
or only calibrates it. The error is that of the reloaded artifact: in onnxruntime for 8 bits, in torch for 4. Finished
runs are not repeated.
"""

import sys
from pathlib import Path

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write
from forgepress.benchmarks.minilm_sst2 import error, teacher

FORMATS = {8: "onnx", 4: "packed"}
CALIBRATED = "quantization.post_training, activations: mse, weight_range: mse"
AWARE = {8: "quantization.aware_training", 4: "quantization.aware_training, step_size: learned"}


def main() -> int:
    """Train what is missing, write results/minilm_quantization.json."""
    parser = _runs.parser(__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of training on the grid; 1,053 are one epoch")
    given = parser.parse_args()
    dense = error(teacher(given.runs))
    rows = [_runs.row("test error in float", [dense], "%")]
    for bits in FORMATS:
        after = [quantized(given.runs, bits, seed, CALIBRATED) for seed in given.seeds[:1]]
        aware = [quantized(given.runs, bits, seed, AWARE[bits], given.steps) for seed in given.seeds]
        change = [found - dense for found in aware]
        rows += [
            _runs.row(f"{bits}-bit weights, quantized afterwards: test error", after, "%"),
            _runs.row(f"{bits}-bit weights, trained on the grid: test error", aware, "%"),
            _runs.row(f"{bits}-bit weights, trained on the grid: change from float", change, "points"),
        ]
    write(__file__, "Does MiniLM keep its accuracy in 8 and 4 bits?", rows, seeds=given.seeds)
    return 0


def quantized(runs: Path, bits: int, seed: int, technique: str, steps: int = 0) -> float:
    """Test error of the reloaded artifact in percent; `steps` 0: eight batches are looked at."""
    technique = f"{{name: {technique}, weight_bits: {bits}}}"
    phase = f"{{name: quantize, steps: {steps or 8}, techniques: [{technique}]}}"
    name = f"minilm_{bits}bit-{'aware' if steps else 'after'}-{seed}"
    words = [f"seed={seed}", f"phases=[{phase}]", f"export=[{FORMATS[bits]}]"]
    return error(_runs.train("minilm_quantization.yaml", runs, name, words))


if __name__ == "__main__":
    sys.exit(main())
