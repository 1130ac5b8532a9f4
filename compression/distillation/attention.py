"""Distillation of attention: which places of a row the student relates, or looks at, as the teacher does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from ...errors import ConfigError
from ..run import Run
from ._base import Distillation
from ._layers import (
    Shapes,
    check_pairs,
    mean_over_places,
    real_places,
    tensor_of,
    with_term,
)
from ._losses import map_distance, relation_divergence

_PART = re.compile(r"^(?P<name>[^\[\]]+)\[(?P<part>\d+)/(?P<parts>\d+)\]$")


@dataclass(frozen=True, kw_only=True)
class AttentionDistillation(Distillation):
    """Add ``weight`` times the divergence of self-attention relations, or the distance of activation maps.

    Fused attention (scaled_dot_product_attention) never makes the matrix of who attends to whom, so that is not what
    is compared. Of a transformer, name the projections instead: query, key or value of a student layer → the same of
    a teacher layer. Each gives relations softmax(x xᵀ / √d) among the tokens of a row, query with query, key with key,
    value with value, split into ``heads``; their divergence is averaged over heads and real tokens. Numbers of heads
    and widths of the two models may differ. A fused projection is named with its part: ``attn.c_attn[2/3]`` is the
    second third of its features.

    Of a convolutional network, name modules that give [rows, channels, height, width]: where they look, the mean of
    squared activations over the channels, is compared as a map. Pairs are added, and averaged over the rows of the
    whole global batch.

    source: Wang et al. 2021 (MiniLMv2), arXiv:2012.15828; maps: Zagoruyko and Komodakis 2017, arXiv:1612.03928.
    cost: the teacher's forward pass and its weights (sharded as the student's are); for each pair two tensors
        [rows, heads, tokens, tokens] and what autograd keeps of them; in a pipeline the teacher's projections are sent
        to the student's stage where they are not the same; on the context axis both are gathered, token by token,
        and on the tensor axis feature by feature.
    finalize: delivers the student as it is.
    """

    layers: dict[str, str]
    """Student module → teacher module; ``name[2/3]`` is the second third of a module's features."""
    heads: int = 1
    """Relation heads, which must divide both widths; no number of attention heads of either model."""
    weight: float = 1.0
    """Factor on the sum over all pairs."""

    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "teacher": {
                "factory": "forgepress.tests.techniques:attentive",
                "args": {"width": 12, "heads": 3},
                "seed": 8,
            },
            "layers": {
                "block.attention.key": "block.attention.key",
                "block.attention.value": "block.attention.query",
            },
            "heads": 2,
        },
    )

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        super().__post_init__()
        check_pairs(self.layers, self.weight)
        if self.heads < 1:
            raise ValueError(f"heads={self.heads}: want 1 or more")
        for name in (*self.layers, *self.layers.values()):
            _named(name)

    def modules(self) -> dict[str, str]:
        """Student module → teacher module, by their names alone."""
        return {_named(ours)[0]: _named(theirs)[0] for ours, theirs in self.layers.items()}

    def fitted(self, student: Shapes, teacher: Shapes) -> AttentionDistillation:
        """This technique, if the two models' outputs can be compared.

        student, teacher: module → shape of its output, the rows first.
        raises: ConfigError for modules that have no places, other tokens, or widths that ``heads`` does not divide.
        """
        for ours, theirs in self.layers.items():
            mine, other = _shape(student[_named(ours)[0]], ours), _shape(teacher[_named(theirs)[0]], theirs)
            said = f"distillation.attention.layers: {ours} gives {list(mine)} and the teacher's {theirs} {list(other)}"
            if len(mine) != len(other) or len(mine) not in (3, 4):
                raise ConfigError(
                    f"{said}; want [rows, tokens, width] of both (query, key or value projections), or "
                    "[rows, channels, height, width] of both"
                )
            if len(mine) == 3 and mine[1] != other[1]:
                raise ConfigError(f"{said}; want the same tokens in both")
            if len(mine) == 3 and (mine[2] % self.heads or other[2] % self.heads):
                raise ConfigError(f"{said}; want heads that divide both widths, but heads is {self.heads}")
        return self

    def set_up(self, run: Run) -> None:
        """Ask for the teacher's projections or maps, and look at the student's."""
        for ours, theirs in self.layers.items():
            column, module = f"{run.scope}/{ours}", _named(ours)[0]
            keep = partial(_kept, theirs)
            self._teacher(run).want(column, module=_named(theirs)[0], at=module, keep=keep, mark=theirs)
            run.hook(module, partial(self._compare, run, column, ours))

    def _terms(self, run: Run) -> list[str]:
        return [f"{run.scope}/{name}" for name in self.layers]

    def _compare(self, run: Run, column: str, name: str, module: Any, args: Any, output: Any) -> Any:
        """The student's output with its loss attached."""
        ours, theirs = _kept(name, run.whole(module, tensor_of(output))), run.now.columns[column]
        if (
            ours.ndim != theirs.ndim
            or ours.ndim not in (3, 4)
            or (ours.ndim == 3 and ours.shape[-1] % self.heads)
        ):
            raise ConfigError(
                f"distillation.attention: {name} gives {list(ours.shape)}, the teacher {list(theirs.shape)}, with "
                f"heads={self.heads}; want [rows, tokens, width] of both, whole and divisible by heads, or "
                "[rows, channels, height, width] of both"
            )
        if ours.ndim == 4:
            each = map_distance(theirs, ours)
        else:
            real = real_places(run, ours.shape[:2])
            each = relation_divergence(theirs, ours, self.heads, real, run.piece.gather)
        term = self.weight * mean_over_places(run, each).sum() / run.rows
        return with_term(run, output, term, column)


def _named(name: str) -> tuple[str, int, int]:
    """Module, part and number of parts of ``name`` or ``name[2/3]``. raises: ValueError for another form."""
    found = _PART.match(name)
    if found is None and ("[" in name or "]" in name):
        raise ValueError(f"layers: {name!r}; want a module's name, or with one of its parts: name[2/3]")
    if found is None:
        return name, 1, 1
    part, parts = int(found["part"]), int(found["parts"])
    if not 1 <= part <= parts:
        raise ValueError(f"layers: {name!r}: want a part from 1 to {parts}")
    return found["name"], part, parts


def _shape(shape: Sequence[int], name: str) -> tuple[int, ...]:
    _, _, parts = _named(name)
    if shape[-1] % parts:
        raise ConfigError(
            f"distillation.attention.layers: {name}: {shape[-1]} features have no {parts} equal parts"
        )
    return (*shape[:-1], shape[-1] // parts)


def _kept(name: str, x: Tensor) -> Tensor:
    """The part of a module's output that ``name`` means."""
    _, part, parts = _named(name)
    return x.float() if parts == 1 else x.chunk(parts, -1)[part - 1].float()
