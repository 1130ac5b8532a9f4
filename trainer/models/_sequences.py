"""Which models of the transformers library may be run on pieces of their sequences (context axis), and why not."""

from typing import Any, Literal

_CAUSAL = ("gpt2", "llama", "qwen2", "qwen3")
_FULL = ("bert",)
_PER_TOKEN = ("causal_lm", "masked_lm", "token_classification")


def attention_of(config: Any, task: str) -> tuple[Literal["causal", "full"] | None, str]:
    """How tokens see each other, as `Layout.attention`, and without an answer the reason."""
    kind = config.model_type
    if kind not in (*_CAUSAL, *_FULL):
        return None, f"sequences can be cut for {', '.join((*_CAUSAL, *_FULL))}, and not yet for {kind}"
    if task not in _PER_TOKEN:
        return None, f"{task} looks at one place of the whole row; want one of {', '.join(_PER_TOKEN)}"
    if config._attn_implementation != "sdpa" or getattr(config, "reorder_and_upcast_attn", False):
        return None, (
            f"attention in the form {config._attn_implementation!r} stays within a piece; want model.config."
            "attn_implementation: sdpa, without reorder_and_upcast_attn"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return None, f"{', '.join(sorted(kinds))} is not attention to the whole sequence"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        return (
            None,
            f"rotary positions of the kind {rope!r} depend on the longest position seen, which pieces differ in",
        )
    if kind in _FULL and not getattr(config, "is_decoder", False):
        return "full", ""
    return "causal", ""
