"""Small models, data and a training loop that the tests of this package share."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from forgepress.parallel import Layout, Mesh, NativeEngine
from forgepress.parallel.whole import gather
from torch import Tensor, nn
from torch.nn import functional

MLP_LAYOUT = Layout(
    order=("fc1", "act1", "fc2", "act2", "fc3", "act3", "fc4"),
    tensor_plan={"fc1": "column", "fc2": "row", "fc3": "column", "fc4": "row"},
    divisible={"fc1 features": 12, "fc3 features": 14},
)


class Mlp(nn.Module):
    """8 → 12 → 10 → 14 → 3: awkward sizes, and a last bias that is shorter than four ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act1 = nn.Linear(8, 12), nn.Tanh()
        self.fc2, self.act2 = nn.Linear(12, 10), nn.Tanh()
        self.fc3, self.act3 = nn.Linear(10, 14), nn.Tanh()
        self.fc4 = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        for name in MLP_LAYOUT.order:
            x = self.get_submodule(name)(x)
        return x


class Attention(nn.Module):
    """Separate q, k, v; the number of local heads follows from the local width, so heads can be divided."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.head_width = width // heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (  # [B, heads here, T, head width]
            f(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each after a norm, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 20), nn.Linear(20, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Embedding, four blocks, norm, head over 11 words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 12)
        self.blocks = nn.ModuleList(Block(12, heads=4) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


TRANSFORMER_LAYOUT = Layout(
    order=("embedding", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm", "head"),
    tensor_plan={
        "blocks.*.attention.[qkv]": "column",
        "blocks.*.attention.out": "row",
        "blocks.*.up": "column",
        "blocks.*.down": "row",
    },
    divisible={"attention heads": 4},
)


class ConvNet(nn.Module):
    """Convolution, global batch normalisation, and a linear head with a normalised input."""

    ORDER = ("conv", "bn", "act", "pool", "flat", "bn1", "head")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.flat = nn.AdaptiveAvgPool2d(2), nn.Flatten()
        self.bn1, self.head = nn.BatchNorm1d(16, momentum=None), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.ORDER:
            x = self.get_submodule(name)(x)
        return x


class Partial(nn.Module):
    """One frozen layer, one layer that is never used, and a bias that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.frozen = nn.Linear(8, 6), nn.Linear(6, 6)
        self.unused, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 3)
        self.frozen.requires_grad_(False)
        self.idle = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.frozen(torch.tanh(self.fc1(x)))))


class FrozenStart(Mlp):
    """An MLP whose first two layers are frozen, so that the first stages have nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1.requires_grad_(False)
        self.fc2.requires_grad_(False)


MODELS: dict[str, tuple[type[nn.Module], Layout]] = {
    "mlp": (Mlp, MLP_LAYOUT),
    "transformer": (Transformer, TRANSFORMER_LAYOUT),
    "conv": (ConvNet, Layout(order=ConvNet.ORDER)),
    "partial": (Partial, Layout()),
    "frozen": (FrozenStart, MLP_LAYOUT),
}


def make_model(name: str) -> tuple[nn.Module, Layout]:
    """A model in float64, the same weights on every call."""
    torch.manual_seed(0)
    kind, layout = MODELS[name]
    return kind().double(), layout


def make_data(name: str, rows: int, step: int) -> dict[str, Tensor]:
    """Columns x and y of a global batch."""
    generator = torch.Generator().manual_seed(100 + step)
    if name == "transformer":
        x = torch.randint(0, 11, (rows, 5), generator=generator)
        return {"x": x, "y": torch.randint(0, 11, (rows, 5), generator=generator)}
    shape = (rows, 1, 6, 6) if name == "conv" else (rows, 8)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.randint(0, 3, (rows,), generator=generator)}


def local_rows(
    rows: int, *, microbatches: int, rank: int, ranks: int, pad: bool
) -> tuple[Tensor, Tensor | None]:
    """Numbers of the rows of one data rank as the loader cuts them, and which of them are real."""
    numbers, valid = [], []
    most = -(-rows // (microbatches * ranks))
    for piece in torch.arange(rows).tensor_split(microbatches):
        mine = piece.tensor_split(ranks)[rank]
        missing = most - len(mine) if pad else 0
        numbers += [mine, torch.zeros(missing, dtype=torch.long)]
        valid += [torch.ones(len(mine), dtype=torch.bool), torch.zeros(missing, dtype=torch.bool)]
    return torch.cat(numbers), torch.cat(valid) if pad else None


def summed_loss(outputs: Tensor, columns: Mapping[str, Tensor], valid: Tensor | None, count: int) -> Tensor:
    """Cross-entropy over real rows, divided by a global count."""
    each = functional.cross_entropy(outputs.flatten(0, -2), columns["y"].flatten(), reduction="none")
    if valid is not None:
        each = each.unflatten(0, (len(valid), -1)) * valid[:, None]
    return each.sum() / count


def train(
    name: str,
    degrees: dict[str, int],
    *,
    rows: int = 17,
    steps: int = 3,
    microbatches: int = 1,
    change: Callable[[nn.Module], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train on a mesh with SGD on local shards; rank 0 returns losses, outputs, gradients and state of the end.

    change: done to each part of the model that the engine holds, before the first step.
    """
    mesh = Mesh.build(degrees)
    model, layout = make_model(name)
    engine = NativeEngine(model, layout, mesh, microbatches=microbatches, **options)
    for part in engine.parts if change is not None else ():
        change(part)
    local = {key: p.to_local() if hasattr(p, "to_local") else p for key, p in engine.parameters().items()}
    local = {key: value.detach() for key, value in local.items()}
    losses: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    for step in range(steps):
        data = make_data(name, rows, step)
        mine, valid = local_rows(
            rows,
            microbatches=microbatches,
            rank=mesh.data_rank,
            ranks=mesh.data_ranks,
            pad=mesh.pipeline > 1,
        )
        engine.zero_grad()
        loss = engine.forward_backward(
            {key: column[mine] for key, column in data.items()},
            valid,
            lambda columns: columns["x"],
            lambda outputs, columns, valid: summed_loss(outputs, columns, valid, rows),
            global_rows=rows,
        )
        losses.append(mesh.reduce(loss, over=("pipeline", "replicate", "shard")))
        found = {key: p.grad for key, p in engine.parameters().items() if p.grad is not None}
        gradients = gather(found, mesh)
        with torch.no_grad():
            for key, gradient in found.items():
                gradient = gradient.to_local() if hasattr(gradient, "to_local") else gradient
                local[key].add_(gradient, alpha=-0.5)
    state = gather(engine.parameters(), mesh)
    buffers = gather(engine.buffers(), mesh)
    return {"losses": torch.stack(losses), "gradients": gradients, "state": state, "buffers": buffers}
