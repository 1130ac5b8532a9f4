"""Models of others in whole runs: pruned while they train, the same on two shards, delivered and loaded back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.parallel import Mesh
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import OWN, config_of, run, torchvision_operators
from forgepress.trainer.artifact import load
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer
from forgepress.trainer.verify import compare

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 20}
LANGUAGE: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 16,
        "resid_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 16},
    "bert": {**SMALL, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0},
}
MAGNITUDE = {"name": "pruning.magnitude", "sparsity": 0.6, "every": 1}
TEXT = "".join(f"{a} times {b} is {a * b}; " for a in range(1, 13) for b in range(1, 13))


@pytest.fixture
def text(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "text.txt").write_text(TEXT)
    return {"source": {"text": str(tmp_path / "text.txt"), "length": 12}, "batch": 15}


def transformers_model(name: str, task: str) -> dict[str, Any]:
    pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'forgepress[models]'"
    )
    return {"transformers": name, "task": task, "config": LANGUAGE[name]}


def config(folder: Path, degrees: dict[str, int], model: Any, data: Any, **values: Any) -> RunConfig:
    phases = [{"name": "prune", "steps": 4, "techniques": [MAGNITUDE]}, {"name": "tune", "steps": 2}]
    return config_of(folder, degrees, **{"model": model, "data": data, "phases": phases, **values})


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_language_model_of_transformers_is_pruned_alike_on_one_process_and_two_shards(
    name: str, text: dict[str, Any], tmp_path: Path
) -> None:
    model = transformers_model(name, "causal_lm")
    alone = run(config(tmp_path / "alone", {}, model, text))
    sharded = run(config(tmp_path / "sharded", {"shard": 2}, model, text))
    difference = compare(alone, sharded)
    assert difference.within() and difference.masks == 0.0, difference
    losses = [loss for loss, _ in alone.steps.values()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "heads"), [("llama", {"num_key_value_heads": 2}), ("gpt2", {"n_head": 4})])
def test_a_tensor_plan_gives_the_run_of_one_process(
    name: str, heads: dict[str, int], text: dict[str, Any], tmp_path: Path
) -> None:
    model = transformers_model(name, "causal_lm")
    model["config"] = {**model["config"], **heads}
    alone = run(config(tmp_path / "alone", {}, model, text))
    divided = run(config(tmp_path / "divided", {"tensor": 2}, model, text))
    difference = compare(alone, divided)
    assert difference.within() and difference.masks == 0.0, difference


@pytest.mark.parametrize("score", ["taylor", "activation"])
def test_heads_whose_query_key_and_value_are_one_matrix_go_alike_while_it_is_divided(
    score: str, text: dict[str, Any], tmp_path: Path
) -> None:
    """Half of GPT-2's heads go in mid-run; the attention that is left is divided anew, with fewer heads to count."""
    model = transformers_model("gpt2", "causal_lm")
    model["config"] = {**model["config"], "n_head": 4}
    removal = {"name": "pruning.structured", "score": score, "kinds": ["heads"], "heads_multiple": 2}
    phases = [{"name": "shrink", "steps": 3, "techniques": [removal]}, {"name": "tune", "steps": 3}]
    alone = run(config(tmp_path / "alone", {}, model, text, phases=phases))
    divided = run(config(tmp_path / "divided", {"tensor": 2}, model, text, phases=phases))
    assert compare(alone, divided).within()
    ends = ("model/transformer.h.0.attn.c_attn.weight", "model/transformer.h.1.attn.c_attn.weight")
    seen = {x.shape[1] for name, x in divided.tensors.items() if name.endswith(ends)}
    assert seen == {48, 24}, "at the phase's end 4 heads, each with 3 times 4 columns; then half of them"


RELATIONS = {
    "gpt2": {f"transformer.h.{n}.attn.c_attn[{part}/3]": f"transformer.h.1.attn.c_attn[{part}/3]"
             for n, part in ((0, 1), (1, 2), (1, 3))},
    "llama": {"model.layers.0.self_attn.q_proj": "model.layers.1.self_attn.k_proj",
              "model.layers.1.self_attn.v_proj": "model.layers.0.self_attn.q_proj"},
}  # fmt: skip


@pytest.mark.parametrize(
    "degrees", [{"tensor": 2}, {"tensor": 2, "pipeline": 2}, {"tensor": 2, "context": 2}], ids=str
)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_relations_are_learned_of_projections_that_the_tensor_axis_divides(
    name: str, degrees: dict[str, int], text: dict[str, Any], tmp_path: Path
) -> None:
    """Student and teacher have a part of the features on each rank, of GPT-2 one of query, one of key, one of value."""
    teacher = transformers_model(name, "causal_lm")
    wide = {"n_embd": 24, "n_head": 2} if name == "gpt2" else {"num_key_value_heads": 2, "hidden_size": 24}
    teacher = {**teacher, "config": {**teacher["config"], **wide}, "seed": 5}
    model = transformers_model(name, "causal_lm")
    if name == "llama":
        model["config"] = {**model["config"], "num_key_value_heads": 2}
    technique = {"name": "distillation.attention", "teacher": teacher, "layers": RELATIONS[name], "heads": 4}
    phases = [{"name": "distil", "steps": 3, "techniques": [technique]}]
    alone = run(config(tmp_path / "alone", {}, model, text, phases=phases))
    plain = run(config(tmp_path / "plain", {}, model, text, phases=[{"name": "distil", "steps": 3}]))
    divided = run(config(tmp_path / "divided", degrees, model, text, phases=phases))
    difference = compare(alone, divided)
    assert difference.within(), difference
    assert not compare(alone, plain).within(), "the teacher changes what is learned"


@pytest.mark.parametrize(
    ("name", "task"), [("bert", "masked_lm"), ("gpt2", "causal_lm"), ("llama", "causal_lm")]
)
def test_a_model_of_transformers_is_delivered_with_its_zeros_and_loads_back(
    name: str, task: str, text: dict[str, Any], tmp_path: Path
) -> None:
    """Tied weights (BERT, GPT-2) are stored once; buffers that the model makes for itself are in no file."""
    model = transformers_model(name, task)
    checked = config(tmp_path / "run", {}, model, text, export=["packed"])
    [found] = run_on_ranks(delivered, checked.model_dump(mode="json"), ranks=1)
    summary = found["summary"]
    assert summary["artifacts"][0]["metrics"] == pytest.approx(summary["metrics"], rel=1e-4)
    assert found["zeros"] == pytest.approx(0.6, abs=1e-3)
    assert found["logits"][:2] == (2, 12)


def delivered(values: dict[str, Any]) -> dict[str, Any]:
    """A whole run, its summary, and what the loaded artifact is like."""
    torchvision_operators()
    checked = RunConfig.model_validate(values)
    summary = Trainer(checked, mesh=Mesh()).fit()
    loaded = load(checked.run_folder)
    weights = [p.detach() for p in loaded.parameters() if p.ndim >= 2]
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    with torch.no_grad():
        logits = loaded(torch.zeros(2, 12, dtype=torch.long)).logits
    return {"summary": summary, "zeros": zeros, "logits": tuple(logits.shape)}


def test_a_model_of_an_own_factory_is_pruned_alike_on_one_process_and_two_shards_and_loads_back(
    tmp_path: Path,
) -> None:
    model = {"factory": f"{OWN}frozen_and_normalised", "args": {"hidden": 16}}
    data = {"source": "digits", "batch": 31}
    alone = run(config(tmp_path / "alone", {}, model, data))
    sharded = run(config(tmp_path / "sharded", {"shard": 2}, model, data))
    difference = compare(alone, sharded)
    assert difference.within() and difference.masks == 0.0, difference
    Trainer(config(tmp_path / "whole", {}, model, data, export=["packed"]), mesh=Mesh()).fit()
    loaded = load(tmp_path / "whole", trust_factory=True)
    assert loaded(torch.zeros(3, 64)).shape == (3, 10)
