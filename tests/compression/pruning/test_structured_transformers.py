"""Structured pruning of transformers' models: fused and grouped projections, gated MLPs, scores that depend on data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forgepress.compression import Chain, Run, weights_of
from forgepress.compression.pruning._unit_statistics import ENERGY, TAYLOR
from forgepress.compression.pruning.structured import Structured
from forgepress.trainer.models import build_model
from torch import nn

pytest.importorskip("transformers")
SMALL = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("causal_lm", {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 16}),
    "llama": (
        "causal_lm",
        {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 32, "intermediate_size": 48},
    ),
    "bert": (
        "sequence_classification",
        {"num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48},
    ),
}
TOKENS = torch.randint(1, 50, (3, 16), generator=torch.Generator().manual_seed(0))


def model_of(kind: str) -> nn.Module:
    task, config = CONFIGS[kind]
    layers = {} if kind == "gpt2" else {"num_hidden_layers": 2, "max_position_embeddings": 16}
    spec = {"transformers": kind, "task": task, "config": {**SMALL, **layers, **config}}
    model = build_model(spec, seed=3).module
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):  # the usual ones are too alike
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                parameter.copy_(0.3 * noise)
    return model.eval()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("score", ["l2", "taylor", "activation"])
def test_what_is_left_computes_what_the_original_does_without_what_is_gone(kind: str, score: Any) -> None:
    model, silenced = model_of(kind), model_of(kind)
    technique = Structured(score=score, share=0.5, scope="uniform", multiple=4)
    run = Run(weights_of(dict(model.named_parameters())), steps=2, modules=dict(model.named_modules()))
    chain = Chain([technique], run)
    chain.set_up()
    for _ in range(2):
        chain.before_step()
        model.zero_grad()
        model(TOKENS).logits.square().sum().backward()
        chain.after_backward()
        chain.before_update()
        chain.after_step()
    state = {key: {name: x for name, (_, x) in chain.buffers(0, key).items()} for key in (TAYLOR, ENERGY)}
    chain.finish()
    record = technique.finalize(model, {**state, "example": {"0": TOKENS[:1]}})
    assert set(record["heads"].values()) == {2}  # of four query groups or heads in each layer
    with torch.no_grad():
        for name, dims in record["kept"].items():
            tensor = dict([*silenced.named_parameters(), *silenced.named_buffers()])[name]
            for dim, kept in dims.items():
                gone = torch.tensor([i for i in range(tensor.shape[int(dim)]) if i not in set(kept)])
                if tensor.ndim > 1:
                    tensor.index_fill_(int(dim), gone, 0.0)
    torch.testing.assert_close(model(TOKENS).logits, silenced(TOKENS).logits, rtol=1e-4, atol=1e-4)
    fresh = model_of(kind)
    technique.rebuild(fresh, record)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(TOKENS).logits, model(TOKENS).logits)
