"""Which layers of models of others the tensor axis divides: by family, or by what stands between two linear layers."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from torch import nn

ATTENTION_PLANS: Mapping[str, Mapping[str, str]] = {
    "bert": {
        **{f"*.attention.self.{name}": "column" for name in ("query", "key", "value")},
        "*.attention.output.dense": "row",
    },
    "vit": {
        **{f"*.attention.{name}_proj": "column" for name in ("q", "k", "v")},
        "*.attention.o_proj": "row",
    },
}
"""model_type → attention's part of the plan, for families of transformers without a plan of their own. GPT-2 has none:
its query, key and value are one matrix, of which a part of the columns is no set of heads."""

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
