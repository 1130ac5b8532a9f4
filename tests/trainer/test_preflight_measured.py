"""What `check` says beforehand of memory and communication, against what a run then holds and sends."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.parallel import Mesh
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import config_of
from forgepress.trainer.assembly import Assembly, assemble
from forgepress.trainer.config import RunConfig
from forgepress.trainer.data import open_data
from forgepress.trainer.live_bytes import LiveBytes
from forgepress.trainer.preflight import examine
from forgepress.trainer.step import Steps
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPT = {"name": "gpt", "vocabulary": 60, "context": 32, "layers": 3, "width": 64, "heads": 4}
SURGERY = {"name": "pruning.network_surgery", "sparsity": 0.5, "every": 1}
PLACES: dict[str, dict[str, Any]] = {
    "one process": {},
    "shard=2, recomputed": {"shard": 2, "recompute": 1},
    "ZeRO-1": {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": 1}},
    "ZeRO-2": {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": 2}},
}


def config(place: dict[str, Any], folder: Path, techniques: list[Any], **values: Any) -> RunConfig:
    text = folder / "letters.txt"
    text.write_text("".join(random.Random(0).choices("abcdefghijklmnop", k=20_000)))
    return config_of(
        folder / "run",
        {},
        **{
            "model": GPT,
            "data": {"source": {"text": str(text), "length": 32}, "batch": 16},
            "parallel": place,
            "phases": [{"name": "train", "steps": 100, "techniques": techniques}],
            **values,
        },
    )


def steps_of(values: dict[str, Any]) -> tuple[Assembly, Any]:
    """A phase ready to train, and a function that takes one step."""
    config = RunConfig.model_validate(values)
    mesh = Mesh.build(config.parallel.degrees)
    data = open_data(config, mesh)
    made = assemble(
        config, config.phases[0], [], mesh, data.facts, steps=100, items_per_row=data.items_per_row
    )
    steps, stream, count = Steps(config, made, mesh, None), data.train.stream(), iter(range(1, 100))
    return made, lambda: steps.train_step(next(stream), next(count), lambda *_: None)


def held(values: dict[str, Any]) -> dict[str, int]:
    """Bytes of a rank: the most at once in a step, and of each kind after it."""
    made, step = steps_of(values)
    step()
    with LiveBytes() as live:
        step()  # what lives already is seen
        step()
    kinds = {
        "weights and buffers": [*made.engine.parameters().values(), *made.engine.buffers().values()],
        "optimizer moments": [state for _, state in made.moments().values()],
        "techniques": [t for _, t in made.chain.tensors().values()],
    }
    made.engine.close()

    def size(tensors: list[Any]) -> int:
        local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
        return sum(t.nbytes for t in local)

    return {"most": live.most, **{kind: size(tensors) for kind, tensors in kinds.items()}}


@pytest.mark.parametrize(
    ("place", "techniques"),
    [
        ("one process", [SURGERY]),
        ("shard=2, recomputed", []),
        ("ZeRO-1", []),
        ("ZeRO-2", [{"name": "pruning.magnitude", "sparsity": 0.5, "every": 1}]),
    ],
)
def test_memory_is_what_a_run_holds(place: str, techniques: list[Any], tmp_path: Path) -> None:
    asked = config(PLACES[place], tmp_path, techniques)
    ranks = asked.parallel.ranks
    report = examine(asked, ranks)
    assert not report.problems
    found = run_on_ranks(held, asked.model_dump(mode="json"), ranks=ranks)
    rows = {row.what: row.bytes for row in report.memory}
    if "ZeRO" not in place:  # there the trainer sees views of what DeepSpeed holds
        for kind in ("weights and buffers", "optimizer moments", "techniques"):
            assert rows[kind] == max(rank[kind] for rank in found), kind
    most = max(rank["most"] for rank in found)
    assert report.memory_bytes() == pytest.approx(most, rel=0.1), (rows, most)


class Sent(TorchDispatchMode):
    """Bytes that a rank sends by each kind of collective, counted as rings send."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self._share = (ranks - 1) / ranks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        if name.startswith(("c10d", "_c10d")) and tensors and "wait" not in name:
            sizes = [t.nbytes for t in tensors]
            if "allreduce" in name or "all_reduce" in name:
                self.bytes["all-reduce"] += round(2 * sum(sizes) * self._share)
            elif "gather" in name or "reduce_scatter" in name:
                kind = "gather" if "gather" in name else "scatter"
                self.bytes[kind] += round(max(sizes) * self._share)
            elif "send" in name:
                self.bytes["send"] += sum(sizes)
        return func(*args, **(kwargs or {}))


def sent(values: dict[str, Any], ranks: int) -> dict[str, int]:
    """What one step after the first sends."""
    made, step = steps_of(values)
    step()
    step()
    with Sent(ranks) as counted:
        step()
    made.engine.close()
    return dict(counted.bytes)


@pytest.mark.parametrize(
    "place",
    [{"replicate": 2}, {"shard": 2}, {"shard": 2, "microbatches": 2}, {"tensor": 2}],
    ids=str,
)
def test_bytes_sent_in_a_step_are_what_was_foretold(place: dict[str, Any], tmp_path: Path) -> None:
    asked = config(place, tmp_path, [])
    (row,) = examine(asked, 2).traffic
    found = run_on_ranks(sent, asked.model_dump(mode="json"), 2, ranks=2)
    assert row.bytes == pytest.approx(sum(found[0].values()), rel=0.05), (row, found)
