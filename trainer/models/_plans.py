"""Which layers of models of others the tensor axis divides: by family, or by what stands between two linear layers."""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from torch import nn

ATTENTION_PLANS: Mapping[str, Mapping[str, str]] = {
    "bert": {
        **{f"*.attention.self.{name}": "column" for name in ("query", "key", "value")},
        "*.attention.output.dense": "row",
    },
    "gpt2": {"*.attn.c_attn": "qkv", "*.attn.c_proj": "row"},
    "vit": {
        **{f"*.attention.{name}_proj": "column" for name in ("q", "k", "v")},
        "*.attention.o_proj": "row",
    },
}
"""model_type → attention's part of the plan, for families of transformers without a plan of their own."""

COUNTS: Mapping[str, tuple[str, ...]] = {"gpt2": ("*.attn.split_size", "*.attn.num_heads")}
"""model_type → what its attention counts (`Layout.counts`)."""

MLP_PLANS: Mapping[str, Mapping[str, str]] = {
    "bert": {"*.layer.*.intermediate.dense": "column", "*.layer.*[0-9].output.dense": "row"},
    "vit": {"*.mlp.fc1": "column", "*.mlp.fc2": "row"},
    "gpt2": {"*.mlp.c_fc": "column", "*.mlp.c_proj": "row"},
}
"""model_type → the rest of the plan."""

_ELEMENTWISE = (
    nn.Identity,
    nn.Dropout,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.Hardtanh,
    nn.Hardswish,
)
"""What works on each feature by itself, and has nothing to learn."""


def pairs_found(model: nn.Module) -> dict[str, str]:
    """A plan for pairs of linear layers with nothing but elementwise modules between them.

    They are looked for in every `nn.Sequential`, and in blocks with the names and the order of timm's `Mlp`: fc1, act,
    drop1, norm, fc2. {}: there is none.
    """
    plan: dict[str, str] = {}
    for name, module in model.named_modules():
        for first, second in _pairs(module):
            names = [f"{name}.{child}".strip(".") for child in (first, second)]
            if not any(one in plan for one in names):
                plan |= dict(zip(names, ("column", "row"), strict=True))
    return plan


_TIMM_COUNTS = ("num_heads", "attn_dim")


def heads_found(model: nn.Module) -> tuple[dict[str, str], dict[str, int], tuple[str, ...]]:
    """Of timm's attentions: the plan, what must be divisible (by the name a person knows), and `Layout.counts`."""
    found: dict[str, Any] = {name: m for name, m in model.named_modules() if _is_timm_attention(m)}
    plan: dict[str, str] = {}
    for name in found:
        plan |= {f"{name}.qkv": "qkv", f"{name}.proj": "row"}
    divisible = {"attention heads": math.gcd(*(m.num_heads for m in found.values()))} if found else {}
    return plan, divisible, tuple(f"{name}.{count}" for name in found for count in _TIMM_COUNTS)


def _is_timm_attention(module: nn.Module) -> bool:
    """Whether its forward goes by `num_heads` and `attn_dim` alone, and between qkv and proj nothing mixes heads."""
    children = dict(module.named_children())
    return (
        type(module).__name__ == "Attention"
        and all(isinstance(getattr(module, count, None), int) for count in _TIMM_COUNTS)
        and all(isinstance(children.get(name), nn.Linear) for name in ("qkv", "proj"))
        and isinstance(children.get("norm", nn.Identity()), nn.Identity)
        and "gate" not in children
    )


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    children = dict(module.named_children())
    if type(module).__name__ == "Mlp" and {"fc1", "fc2"} <= children.keys():
        others = [child for name, child in children.items() if name not in ("fc1", "fc2")]
        linear = all(isinstance(children[name], nn.Linear) for name in ("fc1", "fc2"))
        if linear and all(isinstance(child, _ELEMENTWISE) for child in others):
            yield "fc1", "fc2"
    elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        linear = [n for n, child in children.items() if not isinstance(child, _ELEMENTWISE)]
        for first, second in pairwise(linear):
            if all(type(children[name]) is nn.Linear for name in (first, second)):
                yield first, second
