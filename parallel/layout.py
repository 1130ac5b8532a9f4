"""What the engine needs to know of a model, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

TENSOR_STYLES = ("column", "qkv", "row", "replicate")
COLUMN_STYLES = ("column", "qkv")
"""Those that divide output features."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """Modules between which a model may be cut; its forward may do more than call them one after the other.

    What runs before the first link goes with it, what runs after the last goes with that. Between two links nothing
    passes but the one tensor and what can be computed anew from the model's inputs (masks, positions).
    """

    names: tuple[str, ...]
    """In execution order; each is called once, with what the one before has returned as its first argument."""

    lengths: Mapping[str, int]
    """Link → 0 where it returns a tensor, else the length of the tuple whose first entry is the tensor."""

    users: Mapping[str, tuple[int, ...]]
    """Parameter, all its names → numbers of the links whose stage computes with it; several: a tied one."""

    costs: tuple[float, ...]
    """Forward FLOPs from each link to the next."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model may be cut: along its depth (pipeline), its matrices (tensor) and its memory (shard)."""

    order: tuple[str, ...] = ()
    """Module names in execution order; each takes ONE tensor and gives ONE tensor, and the model's forward is
    exactly their composition. Empty: not known, so the model cannot be cut into pipeline stages."""

    tensor_plan: Mapping[str, str] = field(default_factory=dict)
    """Glob over module names → "column" (output features are divided), "qkv" (so too, of query, key and value in one
    matrix: see `counts`), "row" (input features are divided) or "replicate". Modules that no glob names are whole on
    every rank of the tensor axis."""

    counts: tuple[str, ...] = ()
    """Globs over "module.attribute", of modules right around a "qkv" layer: the numbers of heads and features that
    their forward goes by, divided where that layer is ("*.attn.num_heads")."""

    divisible: Mapping[str, int] = field(default_factory=dict)
    """Numbers that the tensor axis must divide, by the name a person knows: {"attention heads": 6}."""

    summed: tuple[str, ...] = ()
    """Parameters that are whole on every rank of the tensor axis but compute with a part of the activations there
    (see `find_between`): their gradients are added over it."""

    links: Links | None = None
    """Where a model without `order` may be cut into stages (see `find_links`)."""

    units: tuple[str, ...] = ()
    """Globs of modules that become one FSDP unit each (gathered and freed together). Empty: the members of
    `order` that have parameters."""

    head: str = ""
    """The linear layer that gives the logits; "": not known. What it may share with an embedding is `embedding`."""

    embedding: str = ""
    """The embedding whose weight is the head's too; "": none."""

    attention: Literal["causal", "full"] | None = None
    """How tokens see each other, where they do nowhere but in `scaled_dot_product_attention` and positions are told
    from outside (`sequence_place`, `position_ids`): then sequences [rows, tokens, …] may be cut (context axis)."""

    uncut: str = ""
    """Without `attention`: why sequences cannot be cut, where that is known."""

    @property
    def cuts(self) -> tuple[str, ...]:
        """The modules between which stages may begin; empty: not known."""
        return self.order or (self.links.names if self.links is not None else ())
