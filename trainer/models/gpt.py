"""A small GPT of parts that engines can cut: one tensor in, one out; separate query, key, value and out."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...parallel.layout import Layout
from ...parallel.places import places_of
from ._base import BuiltModel, ModelSettings, Probability, Size

# Shapes: B rows, T tokens, W width, N heads held here, D width of one head, V vocabulary.


class Embedding(nn.Module):
    """Token numbers [B, T] → token plus learned position [B, T, W]."""

    def __init__(self, vocabulary: int, context: int, width: int, dropout: float) -> None:
        super().__init__()
        self.sequence_place = (0, 1)
        """(index, number of pieces): which of as many pieces of rows comes in (`places_of`); set where they are cut."""
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        length, (index, pieces) = tokens.shape[1], self.sequence_place
        if length * pieces > self.positions.num_embeddings:
            raise ValueError(
                f"gpt: {length * pieces} tokens a row, but the context is {self.positions.num_embeddings}; "
                "set data.length to at most model.context"
            )
        numbers = (
            places_of(index, pieces, length, tokens.device)
            if pieces > 1
            else torch.arange(length, device=tokens.device)
        )
        return self.dropout(self.tokens(tokens) + self.positions(numbers))


class Attention(nn.Module):
    """Causal self-attention [B, T, W] → [B, T, W].

    How many heads are here follows from the width of the projection, so that query, key and value may be cut
    by columns and out by rows (tensor parallel) without this module knowing.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.head_width = width // heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        projections = (self.query(hidden), self.key(hidden), self.value(hidden))  # [B, T, N*D]
        query, key, value = (x.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for x in projections)
        mixed = F.scaled_dot_product_attention(  # [B, N, T, D]
            query, key, value, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(mixed.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """[B, T, W] → [B, T, W] through `expansion` times the width."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, expansion * width)
        self.gelu = nn.GELU()
        self.down = nn.Linear(expansion * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.gelu(self.up(hidden)))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    def __init__(self, width: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, expansion)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.norm1(hidden)))
        return hidden + self.dropout(self.mlp(self.norm2(hidden)))


@dataclass(frozen=True, kw_only=True)
class GPT(ModelSettings):
    """A decoder-only transformer: learned positions, pre-norm, GELU, causal attention.

    Takes token numbers [B, T] with T <= context; gives logits [B, T, vocabulary].
    source: Radford et al. 2019, Language models are unsupervised multitask learners (initialisation too).
    """

    facts: ClassVar = {"vocabulary": "vocabulary", "context": "length"}

    vocabulary: Size
    context: Size
    layers: Size = 4
    heads: Size = 4
    width: Size = 128
    expansion: Size = 4
    """Width of the MLP in units of `width`."""
    dropout: Probability = 0.0
    tied: bool = False
    """Head and token embedding share one weight, also where they are on different stages of a pipeline."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"model gpt: width={self.width} is not a multiple of heads={self.heads}; change one of them"
            )

    def build(self) -> BuiltModel:
        module = self._module()
        self._initialise(module)
        if self.tied:
            module.head.weight = module.embed.tokens.weight  # type: ignore[union-attr]
        blocks = tuple(f"blocks.{number}" for number in range(self.layers))
        layout = Layout(
            # As FSDP units embed and head would each want to own a shared weight: then only the blocks are units.
            order=("embed", *blocks, "norm", "head"),
            units=blocks if self.tied else (),
            tensor_plan={
                **{f"blocks.*.attention.{name}": "column" for name in ("query", "key", "value")},
                "blocks.*.attention.out": "row",
                "blocks.*.mlp.up": "column",
                "blocks.*.mlp.down": "row",
            },
            attention="causal",
            head="head",
            embedding="embed.tokens" if self.tied else "",
            divisible={"attention heads": self.heads, "mlp features": self.expansion * self.width},
        )
        return BuiltModel(
            module=module,
            layout=layout,
            task="causal_lm",
            spec={},
            input_shape=(self.context,),
            input_dtype=torch.int64,
            input_range=self.vocabulary,
        )

    def _module(self) -> nn.Sequential:
        blocks = (Block(self.width, self.heads, self.expansion, self.dropout) for _ in range(self.layers))
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            embed=Embedding(self.vocabulary, self.context, self.width, self.dropout),
            blocks=nn.Sequential(*blocks),
            norm=nn.LayerNorm(self.width),
            head=nn.Linear(self.width, self.vocabulary, bias=False),
        )
        return nn.Sequential(parts)

    def _initialise(self, module: nn.Module) -> None:
        """Normal weights of 0.02; less where the residual stream is added to, so that its variance stays put."""
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                added = name.endswith(("attention.out.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * self.layers) ** 0.5 if added else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


MODELS = {"gpt": GPT}
