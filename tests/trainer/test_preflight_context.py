"""What cannot be run on pieces of sequences, tokens or classes is refused at `check`, by name."""

from typing import Any

import pytest
from forgepress.errors import ConfigError
from forgepress.tests.parallel.test_every_mesh import GPT, HEADS, library
from forgepress.trainer.config import RunConfig
from forgepress.trainer.models import build_model
from forgepress.trainer.preflight_context import check_context
from forgepress.trainer.preflight_finer import check_finer
from forgepress.trainer.preflight_rules import Found

LLAMA = library("llama", "causal_lm", **HEADS)
TEACHER = {"name": "distillation.logits", "teacher": GPT, "cache": True}


def config_of(model: dict[str, Any], parallel: dict[str, Any], **values: Any) -> RunConfig:
    phases = [{"name": "a", "steps": 1, "techniques": values.pop("techniques", [])}]
    base = {"model": model, "data": {"source": "digits", "batch": 8}, "parallel": parallel, "phases": phases}
    return RunConfig.model_validate({**base, **values})


def problems(model: dict[str, Any], parallel: dict[str, Any], **values: Any) -> dict[str, str]:
    """Key → what `check` says of it."""
    config, found = config_of(model, parallel, **values), Found()
    built = build_model(model, data={"length": 8}, device="meta")
    check_context(config, built, found)
    check_finer(config, built, built.layout, found)
    return {".".join(map(str, problem.path)): problem.message for problem in found.problems}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            library("bert", "sequence_classification", num_attention_heads=2),
            "looks at one place of the whole row",
        ),
        (
            library("vit", "image_classification", image_size=16, patch_size=8, num_attention_heads=2),
            "not yet for vit",
        ),
        (
            library("llama", "causal_lm", attn_implementation="eager", **HEADS),
            "attention in the form 'eager'",
        ),
        (
            library(
                "qwen2", "causal_lm", use_sliding_window=True, sliding_window=4, max_window_layers=0, **HEADS
            ),
            "sliding_attention is not attention to the whole sequence",
        ),
        (
            {"name": "lenet_300_100", "classes": 10, "input_shape": [64]},
            "this model has no sequences that could be cut",
        ),
    ],
)
def test_models_whose_tokens_do_not_meet_in_attention_alone_are_refused(
    model: dict[str, Any], says: str
) -> None:
    message = problems(model, {"context": 2})["parallel.context"]
    assert says in message and message.endswith("use context: 1")


def test_pieces_must_be_equal_and_nobody_may_take_them_for_rows() -> None:
    assert problems(GPT, {"context": 2}) == {}
    assert "does not divide the 8 tokens" in problems(GPT, {"context": 3})["parallel.context"]
    found = problems(GPT, {"context": 2}, evaluate={"metrics": ["a.b:c"]}, techniques=[TEACHER])
    assert "use metrics of the task" in found["evaluate.metrics"]
    assert "use cache: false" in found["phases.0.techniques.0"]


def test_what_goes_with_a_tensor_axis_is_refused_where_it_cannot_be() -> None:
    both = {"sequence_parallel": True, "loss_parallel": True}
    assert problems(LLAMA, {"tensor": 2, **both}) == {}
    assert set(problems(LLAMA, both)) == {"parallel.sequence_parallel", "parallel.loss_parallel"}
    assert (
        "8 tokens" in problems(LLAMA, {"tensor": 3, "sequence_parallel": True})["parallel.sequence_parallel"]
    )
    found = problems(LLAMA, {"tensor": 2, **both}, techniques=[TEACHER])
    assert "looks at all logits" in found["phases.0.techniques.0"]
    aware = [{"name": "quantization.aware_training"}]
    assert (
        "look at activations"
        in problems(LLAMA, {"tensor": 2, **both}, techniques=aware)["parallel.sequence_parallel"]
    )


def test_a_head_that_shares_a_bias_is_not_cut() -> None:
    from forgepress.parallel.split_tokens import refuse_finer
    from forgepress.parallel.tensor import resolve_plan

    built = build_model(
        library("bert", "masked_lm", num_attention_heads=2), data={"length": 8}, device="meta"
    )
    layout = refuse_finer(built.module, built.layout, 2, sequence=False, loss=True)
    with pytest.raises(ConfigError, match="decoder shares a parameter with"):
        resolve_plan(built.module, layout, 2)
