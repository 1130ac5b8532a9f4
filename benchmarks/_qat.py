"""The same GPT trained with and without quantization, for `qat_step_cost.py`: one function for each peer.

Four blocks of width 128 over the characters of tiny Shakespeare (or of random text where that is not at hand), 32 rows
of 64 characters a step, fused AdamW, the whole Trainer. torchao's fake quantization stands in the same Trainer.
"""

import os
import random
import string
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from forgepress.benchmarks._loops import Watch
from forgepress.benchmarks._turns import Turns
from forgepress.compression import Technique
from forgepress.parallel import Mesh, join
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer
from torch import nn

_WEIGHTS = {"name": "quantization.aware_training", "activations": "none"}
_BOTH = {"name": "quantization.aware_training"}
TECHNIQUES: dict[str, dict[str, Any] | None] = {
    "without": None,
    "weights": _WEIGHTS,
    "weights and inputs": _BOTH,
    "torchao, weights": {"name": "forgepress.benchmarks._qat:Torchao", "inputs": False},
    "torchao, weights and inputs": {"name": "forgepress.benchmarks._qat:Torchao"},
}


@dataclass(frozen=True, kw_only=True)
class Torchao(Technique):
    """torchao's INT8 training as it is documented: per channel weights, per token inputs, linear layers."""

    inputs: bool = True

    changes_model: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> None:
        """Swap linear layers for torchao's, which round weights and inputs in every forward pass."""
        from torchao.quantization import quantize_
        from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

        weights = IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
        inputs = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False) if self.inputs else None
        quantize_(model, QATConfig(weight_config=weights, activation_config=inputs))


def peers(pieces: int) -> dict[str, Any]:
    """All peers with that many micro-batches, by name."""
    return {name: partial(train, name=name, pieces=pieces) for name in TECHNIQUES}


def train(turns: Turns, *, name: str, pieces: int) -> None:
    """A run that is longer than the measurement."""
    technique = TECHNIQUES[name]
    config = RunConfig.model_validate(
        {
            "name": "timed",
            "model": {"name": "gpt", "layers": 4, "heads": 4, "width": 128},
            "data": {"source": {"text": str(_text(turns.folder)), "length": 64}, "batch": 32},
            "parallel": {"microbatches": pieces},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "phases": [{"name": "timed", "steps": 20_000, "techniques": [technique] if technique else []}],
            "tracking": {"every": 100},
            "checkpoint": {"folder": f"{turns.folder}/runs"},
        }
    )
    with join("cpu", rank=turns.rank, ranks=turns.ranks, meeting=turns.meeting) as device:
        mesh = Mesh.build(config.parallel.degrees, device=device)
        Trainer(config, mesh=mesh, watch=Watch(turns)).fit()


def _text(scratch: str) -> Path:
    known = Path(os.environ.get("FORGEPRESS_DATA", "../shared/data")) / "tiny-shakespeare" / "input.txt"
    if known.is_file():
        return known
    path = Path(scratch, "input.txt")
    path.write_text("".join(random.Random(0).choices(string.ascii_letters + " \n", k=1_000_000)))
    return path
