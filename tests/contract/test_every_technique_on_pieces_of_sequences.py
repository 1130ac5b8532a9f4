"""The contract on the context axis: a technique on pieces of sequences is the technique of one process.

A GPT begins on context=2, is stopped, and goes on on shard=2 × context=2; its end is that of one process.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from forgepress.compression import techniques
from forgepress.tests.meshes import CONTEXT_MESHES
from forgepress.tests.sessions import config_of, run
from forgepress.trainer.config import RunConfig
from forgepress.trainer.traces import Trace, compare

GPT = {"name": "gpt", "layers": 2, "heads": 2, "width": 16}
TEACHER = {**GPT, "width": 24, "seed": 8}
TEXT = "".join("forgepress shapes metal"[(7 * i * i + i // 5) % 23] for i in range(600))
OWN: dict[str, dict[str, Any]] = {
    "distillation.attention": {
        "teacher": TEACHER,
        "layers": {
            "blocks.1.attention.query": "blocks.1.attention.key",
            "blocks.0.mlp.down": "blocks.0.mlp.down",
        },
        "heads": 2,
    },
    "distillation.features": {"teacher": TEACHER, "layers": {"blocks.0": "blocks.0", "norm": "norm"}},
    "distillation.logits": {"teacher": TEACHER, "temperature": 2.0, "top_k": 4},
    "pruning.network_slimming": {"share": 0.25, "multiple": 4, "strength": 0.02},
    "pruning.structured": {"score": "l2", "multiple": 4, "heads_multiple": 1},
}
"""Settings for a GPT, of techniques whose contract names modules of the other tests' model."""
CASES = [name for name, kind in techniques().items() if kind.contract or name in OWN]


def config(name: str, degrees: dict[str, int], folder: Path) -> RunConfig:
    (folder.parent / "text").write_text(TEXT)
    settings = OWN[name] if name in OWN else techniques()[name].contract[0]
    technique = {"name": name, **settings}
    return config_of(
        folder,
        degrees,
        model=GPT,
        data={"source": {"text": str(folder.parent / "text"), "length": 8}, "batch": 6},
        phases=[{"name": "compress", "steps": 4, "techniques": [technique]}],
        checkpoint={"every": 2},
    )


@functools.cache
def traces(name: str) -> tuple[Trace, Trace]:
    """The run of one process, and that which two meshes have handed on."""
    with tempfile.TemporaryDirectory() as folder:
        alone = run(config(name, {}, Path(folder) / "alone"))
        first, second = CONTEXT_MESHES.values()
        run(config(name, first, Path(folder) / "there"), stop_at=2)
        return alone, run(config(name, second, Path(folder) / "there"))


@pytest.mark.parametrize(
    ("name", "mesh"),
    [pytest.param(name, mesh, id=f"{name}-0-{mesh}") for name in CASES for mesh in CONTEXT_MESHES],
)
def test_gives_the_result_of_one_process_on_pieces_of_sequences(name: str, mesh: str) -> None:
    alone, there = traces(name)
    difference = compare(alone, there)
    assert difference.within() and difference.masks == 0.0, difference
    assert len(there.steps) == 4
