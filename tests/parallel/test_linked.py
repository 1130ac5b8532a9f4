"""Models whose forward is no plain composition: where they may be cut is found, and stages train as one process."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from forgepress.parallel import Mesh, NativeEngine, gather
from forgepress.parallel.links import find_links
from forgepress.tests.ranks import run_on_ranks
from forgepress.trainer.models import build_model
from forgepress.trainer.tasks import task_for
from torch import nn

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "vocab_size": 31}


def library(kind: str, task: str, **config: Any) -> dict[str, Any]:
    values = {"model_type": kind, "max_position_embeddings": 16, **SMALL, **config}
    return {"transformers": kind, "task": task, "pretrained": False, "config": values}


LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "bert": library("bert", "masked_lm", num_attention_heads=2),
    "gpt2": library(
        "gpt2", "causal_lm", n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0
    ),
    "llama": library("llama", "causal_lm", **LLAMA),
    "qwen3": library("qwen3", "causal_lm", head_dim=4, tie_word_embeddings=True, **LLAMA),
    "vit": library("vit", "image_classification", num_attention_heads=2, image_size=16, patch_size=8),
    "timm_vit": {"timm": "vit_tiny_patch16_224", "args": {"depth": 2, "num_classes": 3, "img_size": 32}},
    "timm_resnet": {"timm": "resnet18", "args": {"num_classes": 3}},
    "tied_gpt": {
        "name": "gpt",
        "vocabulary": 31,
        "context": 8,
        "layers": 3,
        "width": 16,
        "heads": 2,
        "tied": True,
    },
}


def columns_of(built: Any, rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (rows, *built.input_shape)
    if built.input_dtype != torch.int64:
        name = "pixel_values" if built.task.startswith("transformers") else "inputs"
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return {name: x, "targets": torch.randint(0, 2, (rows,), generator=generator)}
    x, y = (torch.randint(0, 31, shape, generator=generator) for _ in range(2))
    if not built.task.startswith("transformers"):
        return {"inputs": x, "targets": y}
    mask = torch.ones_like(x)
    mask[1, 10:] = mask[5, 4:] = 0  # two rows are padded, so that each stage needs the mask too
    return {"input_ids": x, "attention_mask": mask, "targets": y.masked_fill(mask == 0, -100)}


def double_cuttable(built: Any) -> Any:
    def run(model: nn.Module, mode: Any) -> Any:
        return model(*(x.double() if x.is_floating_point() else x for x in built.example(2)))

    return replace(built, layout=replace(built.layout, links=find_links(built.module, run)))


def train(name: str, degrees: dict[str, int], schedule: str) -> dict[str, Any]:
    facts = {"input_shape": (3, 32, 32)} if "timm" in name else {"input_shape": (3, 16, 16)}
    built = build_model(MODELS[name], data=facts)
    for module in built.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif getattr(module, "attention_dropout", None):
            module.attention_dropout = 0.0  # pyright: ignore[reportAttributeAccessIssue]  # pyright: ignore[reportArgumentType]
    mesh, task = Mesh.build(degrees), task_for(built.task)
    built.module.double()
    built = built if built.layout.cuts else double_cuttable(built)
    engine = NativeEngine(built.module, built.layout, mesh, schedule=schedule, microbatches=4)
    rows = torch.arange(8).view(4, mesh.data_ranks, -1)[:, mesh.data_rank].flatten()
    columns = {key: column[rows] for key, column in columns_of(built, 8).items()}
    outputs = engine.forward(columns, task.inputs)
    loss = engine.forward_backward(
        columns, None, task.inputs, lambda y, c, v: task.loss_sum(y, c, v).double() / 100, global_rows=8
    )
    gradients = {key: p.grad for key, p in engine.parameters().items() if p.grad is not None}
    found = gather(gradients, mesh)
    assert outputs is None or torch.isfinite(getattr(outputs, "logits", outputs)).all()
    return {"loss": mesh.reduce(loss, over=("pipeline", "replicate", "shard")), "gradients": found}


@pytest.mark.parametrize(
    ("name", "degrees", "schedule"),
    [
        (
            "bert",
            {"pipeline": 2, "shard": 2},
            "zbv",
        ),  # masks on every stage, tied over two ranks' stages and four
        ("qwen3", {"pipeline": 2}, "dualpipev"),
        ("timm_resnet", {"pipeline": 2}, "1f1b"),
        ("tied_gpt", {"pipeline": 2, "shard": 2}, "zbv"),
    ],
)
def test_stages_found_by_themselves_train_as_one_process(
    name: str, degrees: dict[str, int], schedule: str
) -> None:
    ranks = degrees["pipeline"] * degrees.get("shard", 1)
    whole = train(name, {}, schedule)
    there = run_on_ranks(train, name, degrees, schedule, ranks=ranks)[0]
    torch.testing.assert_close(there["loss"], whole["loss"], rtol=1e-6, atol=1e-8)
    assert there["gradients"].keys() == whole["gradients"].keys()
    largest = max(float(gradient.abs().max()) for gradient in whole["gradients"].values())
    for key, gradient in whole["gradients"].items():
        # some of these libraries' norms compute in float32 whatever the weights are
        torch.testing.assert_close(
            there["gradients"][key],
            gradient,
            rtol=1e-5,
            atol=1e-6 * largest,
            msg=lambda m, k=key: f"{k}: {m}",
        )


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("gpt2", ["transformer.drop", "transformer.h.0", "transformer.h.1", "transformer.ln_f"]),
        ("llama", ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"]),
        ("vit", ["vit.embeddings", "vit.layers.0", "vit.layers.1", "vit.layernorm"]),
        ("timm_vit", ["pos_drop", "patch_drop", "norm_pre", "blocks.0", "blocks.1", "norm"]),
    ],
)
def test_cuts_are_between_blocks(name: str, cuts: list[str]) -> None:
    facts = {"input_shape": (3, 32, 32)} if "timm" in name else {"input_shape": (3, 16, 16)}
    device = "cpu" if "timm" in name else "meta"
    assert list(build_model(MODELS[name], data=facts, device=device).cuttable().layout.cuts) == cuts


def test_an_embedding_that_is_heavier_than_all_blocks_hides_no_cut() -> None:
    spec = MODELS["gpt2"]
    heavy = {**spec, "config": {**spec["config"], "vocab_size": 5000}}
    assert build_model(heavy, device="meta").cuttable().layout.cuts[1:] == (
        "transformer.h.0",
        "transformer.h.1",
        "transformer.ln_f",
    )


class Skip(nn.Module):
    """A tensor goes from the first layer to the last, past the one in between; then come two plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.a(x)
        return self.d(self.c(self.b(first) + first))


def test_no_cut_where_a_second_tensor_would_have_to_pass() -> None:
    links = find_links(Skip(), lambda model, mode: model(torch.zeros(2, 4)))
    assert links is not None and links.names == ("c", "d")
    assert links.users["a.weight"] == links.users["b.bias"] == (0,) and links.users["d.weight"] == (1,)
    assert links.costs == (3 * 2 * 2 * 16.0, 2 * 2 * 16.0)
