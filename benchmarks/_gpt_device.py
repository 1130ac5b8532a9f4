"""A GPT on one device: a bare loop and our Trainer, the same model, tokens and compiled blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from forgepress.benchmarks._loops import Watch
from forgepress.benchmarks._turns import Turns
from forgepress.parallel import Mesh
from forgepress.parallel.compiled import compile_blocks, compiled
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer
from forgepress.trainer.models import build_model

RATE = 1e-4
WARM_UP = 4  # steps before the first turn: compilation, and the first moments


def model_of(size: dict[str, int]) -> dict[str, Any]:
    """The config's `model`. size: vocabulary, length, layers, width, heads."""
    named = {"vocabulary": size["vocabulary"], "context": size["length"]}
    return {"name": "gpt", **named, **{key: size[key] for key in ("layers", "width", "heads")}}


def text_file(folder: str, size: dict[str, int]) -> Path:
    """Random letters, a token each: of the vocabulary few are used, which no operator notices."""
    path = Path(folder) / "letters.txt"
    if not path.is_file():
        letters = np.random.default_rng(0).integers(97, 123, 600 * (size["length"] + 1), dtype=np.uint8)
        path.write_bytes(letters.tobytes())
    return path


def bare(turns: Turns, size: dict[str, int], batch: int, device: str, compile: str, notes: str) -> None:
    """The loop that one would write for this model alone: rows on the device, autocast, fused AdamW.

    compile: "" for none, "blocks" as ours, "whole" for torch.compile of the model.
    """
    built = build_model(model_of(size), device=device)
    model: Any = built.module
    if compile == "blocks":
        compile_blocks(model, compiled(model, built.layout))
    call = torch.compile(model) if compile == "whole" else model
    letters = np.fromfile(text_file(turns.folder, size), dtype=np.uint8).astype(np.int64)
    rows = torch.from_numpy(letters).view(-1, size["length"] + 1).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    generator, step = torch.Generator().manual_seed(0), 0
    while True:
        order = torch.randperm(len(rows), generator=generator).to(device)
        for numbers in order.split(batch):
            if len(numbers) < batch:
                continue
            if step >= WARM_UP:
                _note(turns, notes, device)
                turns()
            here = rows.index_select(0, numbers)
            with torch.autocast(device, dtype=torch.bfloat16):
                logits = call(here[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), here[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1


def ours(
    turns: Turns,
    size: dict[str, int],
    batch: int,
    device: str,
    compile: str,
    notes: str,
    technique: dict[str, Any] | None,
) -> None:
    """The whole Trainer in bf16."""
    path = text_file(turns.folder, size)
    config = RunConfig.model_validate(
        {
            "name": "timed",
            "model": model_of(size),
            "data": {
                "source": {"text": str(path), "length": size["length"], "tokens": "bytes"},
                "batch": batch,
                "tail": "drop",
            },
            "parallel": {"compile": bool(compile)},
            "precision": "bf16",
            "optimizer": {"name": "adamw", "lr": RATE},
            "phases": [{"name": "timed", "steps": 20_000, "techniques": [technique] if technique else []}],
            "tracking": {"every": 100},
            "checkpoint": {"folder": f"{turns.folder}/runs"},
        }
    )
    mesh = Mesh(device=torch.device(device))
    watch: Any = Watch(turns, first=WARM_UP)
    beat = watch.beat

    def noting(step: int, where: str, allow: float = 0.0) -> None:
        if where == "data" and step >= WARM_UP:
            _note(turns, notes, device)
        beat(step, where, allow)

    watch.beat = noting
    Trainer(config, mesh=mesh, watch=watch).fit()


def _note(turns: Turns, path: str, device: str) -> None:
    """At the end of a turn: wait for the device, so that the time is this turn's own; the peak of its memory."""
    if device == "cuda" and turns._done % turns.steps == 0:
        torch.cuda.synchronize()
        Path(path).write_text(json.dumps({"peak_bytes": torch.cuda.max_memory_allocated()}))
