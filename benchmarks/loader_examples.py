"""How much of their time do the GPT and the CIFAR example wait for data?

Trains the first steps of examples/gpt_shakespeare.yaml and examples/cifar_vgg.yaml (JPEG pictures, cropped and flipped
at random) as anyone would, and reads what the run itself says. Start and evaluation are outside; the first batch is in.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from forgepress.benchmarks import _runs
from forgepress.benchmarks._result import write

STEPS = {"gpt_shakespeare": 400, "cifar_vgg": 60}


def main() -> int:
    """Train, write results/loader_examples.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="overrides for both, such as precision=fp32")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            _runs.row(
                f"{example}: time that waits for data",
                [_waited(Path(folder), example, repeat, given.words) for repeat in range(given.repeats)],
                "%",
            )
            for example in STEPS
        ]
    write(__file__, "How much of their time do the GPT and the CIFAR example wait for data?", rows)
    return 0


def _waited(runs: Path, example: str, repeat: int, words: list[str]) -> float:
    """In percent of the steps' time."""
    name, steps = f"{example}-{repeat}", STEPS[example]
    phases = f"phases=[{{name: train, steps: {steps}}}]"
    settings = [phases, f"tracking.every={steps}", "evaluate.batch=500", "export=[]", *words]
    _runs.train(f"{example}.yaml", runs, name, settings)
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    return 100 * next(line["data_wait_fraction"] for line in lines if line["kind"] == "train")


if __name__ == "__main__":
    sys.exit(main())
