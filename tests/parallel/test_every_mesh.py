"""One table: the loss, every gradient and the clip norm of one process on every mesh, for three kinds of models.

The batch is ragged, 9 rows in 2 or 4 micro-batches (a pipeline pads them), and BERT's rows are padded as well.
"""

from functools import cache
from typing import Any

import pytest
import torch
from forgepress.compression import Run, weights_of
from forgepress.dataloading import Batch
from forgepress.parallel import TOKEN_AXES, Layout, Mesh, NativeEngine, gather
from forgepress.parallel.vocabulary import split_cross_entropy
from forgepress.parallel.whole import is_divided
from forgepress.tests.parallel.toys import local_rows, make_model
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import torchvision_operators
from forgepress.trainer.assembly import with_sums
from forgepress.trainer.gradients import PARTS, global_norm
from forgepress.trainer.models import BuiltModel, build_model
from forgepress.trainer.models._plans import pairs_found
from forgepress.trainer.sequences import cut_batch, inputs_on
from forgepress.trainer.tasks import task_for
from torch import Tensor, nn

ROWS, WORDS, LENGTH = 9, 32, 8
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "vocab_size": WORDS}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def library(kind: str, task: str, **config: Any) -> dict[str, Any]:
    values = {"model_type": kind, "max_position_embeddings": LENGTH, **SMALL, **config}
    return {"transformers": kind, "task": task, "pretrained": False, "config": values}


GPT = {"name": "gpt", "vocabulary": WORDS, "context": LENGTH, "layers": 3, "width": 16, "heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
TIMM = {"depth": 2, "embed_dim": 16, "num_heads": 4}
SPECS: dict[str, dict[str, Any]] = {
    "gpt": {**GPT, "tied": True},
    "bert": library("bert", "masked_lm", num_attention_heads=2, **NO_DROPOUT),
    "gpt2": library("gpt2", "causal_lm", attn_pdrop=0.0, **GPT2),
    "llama": library("llama", "causal_lm", **HEADS),
    "qwen3": library("qwen3", "causal_lm", head_dim=4, tie_word_embeddings=True, **HEADS),
    "vit": library(
        "vit", "image_classification", image_size=16, patch_size=8, num_attention_heads=2, **NO_DROPOUT
    ),
    "timm": {"timm": "vit_tiny_patch16_224", "args": {**TIMM, "num_classes": 3, "img_size": 32}},
}


def built(name: str) -> BuiltModel:
    if name == "conv":
        module, layout = make_model("conv")
        return BuiltModel(module=module.float(), layout=layout, task="classification", spec={})
    if name == "sequential":
        sizes = [
            nn.Flatten(),
            nn.Linear(36, 12),
            nn.ReLU(),
            nn.Linear(12, 10),
            nn.LayerNorm(10),
            nn.Linear(10, 14),
        ]
        module = nn.Sequential(*sizes, nn.Tanh(), nn.Dropout(0.0), nn.Linear(14, 3))
        layout = Layout(tensor_plan=pairs_found(module))
        return BuiltModel(module=module, layout=layout, task="classification", spec={}, input_shape=(1, 6, 6))
    torchvision_operators()
    facts = {"input_shape": (3, 32, 32)} if name == "timm" else {"length": LENGTH}
    return build_model(SPECS[name], data=facts).cuttable()


def columns_of(name: str, model: BuiltModel, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if model.input_dtype != torch.int64:
        shape = (ROWS, *(model.input_shape or (1, 6, 6)))
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        key = "pixel_values" if name == "vit" else "inputs"
        return {key: x.to(dtype), "targets": torch.randint(0, 2, (ROWS,), generator=generator)}
    x, y = (torch.randint(0, WORDS, (ROWS, LENGTH), generator=generator) for _ in range(2))
    if name == "gpt":
        return {"inputs": x, "targets": y}
    mask = torch.ones_like(x)
    mask[1, 5:] = mask[4, 2:] = 0
    # causal models learn the next token of their inputs, whose last one may be on another rank
    targets = {"targets": y.masked_fill(mask == 0, -100)} if name == "bert" else {}
    return {"input_ids": x, "attention_mask": mask, **targets}


def gradients(
    name: str, degrees: dict[str, int], options: dict[str, Any], dtypes: list[torch.dtype]
) -> dict[torch.dtype, dict[str, Tensor]]:
    """One step on a mesh; of every dtype "loss", "norm" and each parameter's gradient, whole."""
    mesh, found = Mesh.build(degrees), {}
    for dtype in dtypes:
        torch.manual_seed(0)
        held = built(name)
        task, pieces = task_for(held.task), options["microbatches"]
        layout = with_sums(held, held.layout, mesh.tensor) if mesh.tensor > 1 else held.layout
        inputs = inputs_on(task, layout.attention, mesh)
        everything = columns_of(name, held, dtype)
        mine, valid = local_rows(
            ROWS, microbatches=pieces, rank=mesh.data_rank, ranks=mesh.data_ranks, pad=mesh.pipeline > 1
        )
        rows = {key: column[mine] for key, column in everything.items()}
        whole = Batch(columns=rows, valid=valid, global_rows=ROWS, epoch=0, index=0, rows=mine)
        batch = cut_batch(whole, task, mesh)
        count = task.count(everything, None)
        engine = NativeEngine(held.module.to(dtype), layout, mesh, **options)
        loss = engine.forward_backward(
            batch.columns,
            batch.valid,
            inputs,
            lambda y, c, v, count=count, task=task: precise(task, y, c, v) / count,
            global_rows=ROWS,
        )
        views = weights_of(engine.parameters(), mesh.weight_coordinates)
        for view in views:
            view.take_grad()
        norm = global_norm(Run(views, steps=1, reduce=lambda x, op: mesh.reduce(x, op, PARTS)))
        local = {key: p.grad for key, p in engine.parameters().items() if p.grad is not None}
        held_here = gather(local, mesh)
        total = mesh.reduce(loss.double(), over=("pipeline", *TOKEN_AXES))
        found[dtype] = {"loss": total, "norm": norm.double(), **held_here}
    return found


def precise(task: Any, outputs: Any, columns: Any, valid: Tensor | None) -> Tensor:
    """The task's summed loss, in the outputs' own precision (the task's is float32)."""
    logits, targets = task._aligned(getattr(outputs, "logits", outputs), columns, valid)
    flat, targets = logits.flatten(0, -2), targets.flatten()
    if is_divided(flat):
        return split_cross_entropy(flat, targets, task.ignored)
    return nn.functional.cross_entropy(flat, targets, ignore_index=task.ignored, reduction="sum")


@cache
def alone(name: str, microbatches: int) -> dict[torch.dtype, dict[str, Tensor]]:
    return gradients(name, {}, {"microbatches": microbatches}, [torch.float64, torch.float32])


BOTH = {"sequence_parallel": True, "loss_parallel": True}
FINER: list[tuple[str, dict[str, int], str, dict[str, bool]]] = [
    ("gpt", {"tensor": 2}, "", BOTH),
    ("bert", {"tensor": 2}, "", {"sequence_parallel": True}),  # its head shares a bias, which is not cut
    ("qwen3", {"tensor": 2}, "", BOTH),
    ("llama", {"shard": 2, "tensor": 2}, "", BOTH),
    ("gpt", {"pipeline": 2, "tensor": 2}, "interleaved_zero_bubble", BOTH),
    ("gpt", {"context": 2, "tensor": 2}, "", BOTH),
    ("gpt2", {"tensor": 2}, "", BOTH),
    ("gpt2", {"shard": 2, "tensor": 2}, "", {}),
    ("gpt2", {"context": 2, "tensor": 2}, "", {}),
    ("gpt2", {"pipeline": 2, "tensor": 2}, "1f1b", {}),
    ("gpt2", {"tensor": 4}, "", {}),
    ("timm", {"tensor": 4}, "", {}),
    ("timm", {"pipeline": 2, "tensor": 2}, "1f1b", {}),
]
MESHES: dict[str, tuple[dict[str, int], str]] = {
    "replicate=3": ({"replicate": 3}, ""),
    "shard=3": ({"shard": 3}, ""),
    "replicate=2 shard=2": ({"replicate": 2, "shard": 2}, ""),
    "pipeline=2 gpipe": ({"pipeline": 2}, "gpipe"),
    "pipeline=2 shard=2 zero bubble": ({"pipeline": 2, "shard": 2}, "interleaved_zero_bubble"),
    "tensor=2": ({"tensor": 2}, ""),
    "shard=2 tensor=2": ({"shard": 2, "tensor": 2}, ""),
    "context=2": ({"context": 2}, ""),
    "context=4": ({"context": 4}, ""),
    "shard=2 context=2": ({"shard": 2, "context": 2}, ""),
    "replicate=2 context=2": ({"replicate": 2, "context": 2}, ""),
    "pipeline=2 context=2 zbv": ({"pipeline": 2, "context": 2}, "zbv"),
    "context=2 tensor=2": ({"context": 2, "tensor": 2}, ""),
    "pipeline=2 context=2 tensor=2": ({"pipeline": 2, "context": 2, "tensor": 2}, "1f1b"),
}
HAS = {"conv": ("replicate", "shard", "pipeline")}


def table() -> list[Any]:
    found = []
    for name in ("conv", "gpt", "bert"):
        for label, (degrees, schedule) in MESHES.items():
            if all(axis in HAS.get(name, degrees) for axis in degrees):
                found.append(pytest.param(name, degrees, schedule, {}, id=f"{name} {label}"))
    for name in ("gpt2", "llama", "qwen3"):
        found.append(pytest.param(name, {"context": 2}, "", {}, id=f"{name} context=2"))
    for name in ("gpt2", "llama", "qwen3", "vit", "timm", "sequential"):
        found.append(pytest.param(name, {"tensor": 2}, "", {}, id=f"{name} tensor=2"))
    for name, degrees, schedule, finer in FINER:
        label = " ".join([name, *(f"{axis}={n}" for axis, n in degrees.items()), schedule, *finer])
        found.append(pytest.param(name, degrees, schedule, finer, id=label))
    return found


LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
NARROW_NORMS = ("llama", "qwen3")  # the library's norms compute in float32 whatever the weights are


@pytest.mark.parametrize(("name", "degrees", "schedule", "finer"), table())
def test_loss_gradients_and_norm_are_those_of_one_process(
    name: str, degrees: dict[str, int], schedule: str, finer: dict[str, bool]
) -> None:
    options: dict[str, Any] = {"microbatches": 4 if schedule and name != "conv" else 2, **finer}
    if schedule:
        options["schedule"] = schedule
    whole = alone(name, options["microbatches"])  # FSDP, TP and pipelines keep the names
    ranks = torch.Size(degrees.values()).numel()
    there = run_on_ranks(gradients, name, degrees, options, list(LIMITS), ranks=ranks)[0]
    for dtype, limit in LIMITS.items():
        limit = LIMITS[torch.float32] if name in NARROW_NORMS else limit
        assert there[dtype].keys() == whole[dtype].keys()
        least = 0.1 * float(whole[dtype]["norm"])
        for key, expected in whole[dtype].items():
            error = float((there[dtype][key] - expected).norm())
            # a bias that only shifts a softmax has a gradient of rounding alone: the model's whole one is the measure
            assert error <= limit * max(float(expected.norm()), least), f"{key} in {dtype}: {error}"
