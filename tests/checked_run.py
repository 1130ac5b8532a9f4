"""A run that `forgepress check` looks at: a source made up here, real models on shapes alone."""

import torch

from ..dataloading import ArraySource
from ..trainer.config import RunConfig
from ..trainer.preflight import examine

ROWS = 70
WEIGHTS = 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
MATRICES = 784 * 300 + 300 * 100 + 100 * 10


def images(spec, split="train"):
    inputs = torch.zeros(ROWS, 1, 28, 28)
    return ArraySource({"inputs": inputs, "targets": torch.arange(ROWS) % 10}, fingerprint="made up")


def config(**changes):
    base = {
        "model": "lenet_300_100",
        "data": {"source": "digits", "batch": 32},
        "phases": [{"name": "dense", "epochs": 2}],
    }
    return RunConfig.model_validate({**base, **changes})


def report(ranks=1, load_source=images, build_model=None, **changes):
    return examine(config(**changes), ranks, load_source=load_source, build_model=build_model)
