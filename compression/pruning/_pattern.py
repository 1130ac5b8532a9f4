"""N:M patterns: of every M neighbours along the input dim, at most N are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ...errors import ConfigError
from ..run import Run
from ..weight import Weight

_FEW = 8  # in a group


@dataclass(frozen=True)
class Pattern:
    """At most ``keep`` of ``group`` neighbours along the input dim (`input_dim`) are not zero.

    A convolution has its groups along the input channels, at each kernel position by itself; a last group that is
    short counts as filled up with zeros.
    source: Mishra et al. 2021, arXiv:2104.08378 (2:4, and the order of dims in which sparse tensor cores read it).
    """

    keep: int
    group: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """``"2:4"`` as a pattern. raises: ValueError."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        pattern = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 0 < pattern.keep < pattern.group:
            raise ValueError(
                f'sparsity={text!r}: want a share from 0 to below 1, or a pattern "N:M" with 0 < N < M, such as "2:4"'
            )
        return pattern

    def kept(self, progress: float) -> int:
        """How many of a group are kept at ``progress`` (0 to 1) of a ramp: M at first, N at the end."""
        return self.group - round(progress * (self.group - self.keep))

    def zeros(self, weight: Weight, dim: int, progress: float) -> int:
        """Zeros of the whole parameter, whose groups lie along ``dim``."""
        kept = self.kept(progress)
        inputs = weight.shape[dim]
        full, short = divmod(inputs, self.group)
        rows = weight.shape.numel() // max(inputs, 1)
        return rows * (full * (self.group - kept) + max(short - kept, 0))

    def mask(self, score: Tensor, dim: int, kept: int) -> Tensor:
        """True for the ``kept`` largest of each group; among equal ones the first.

        score: any shape with ``dim`` whole, none below 0; returns: bool of that shape.
        """
        if kept >= self.group:
            return torch.ones_like(score, dtype=torch.bool)
        groups = self._groups(score, dim)
        mask = _few_largest(groups, kept) if self.group <= _FEW else _largest(groups, kept)
        return mask.flatten(-2)[..., : score.shape[dim]].movedim(-1, dim)

    def broken(self, weight: Weight, dim: int, progress: float) -> int:
        """1 where a group of the parameter has more than it may, else 0; equal on all ranks that hold parts of it."""
        whole, _ = weight.along(weight.live() != 0, dim)
        over = (self._groups(whole.to(torch.int8), dim) > 0).sum(dim=-1) > self.kept(progress)
        return int(weight.add_over_parts(over.sum()) > 0)

    def _groups(self, x: Tensor, dim: int) -> Tensor:
        """[others, …, groups, M], filled up with -1."""
        groups = -(-x.shape[dim] // self.group)
        x = torch.nn.functional.pad(x.movedim(dim, -1), (0, groups * self.group - x.shape[dim]), value=-1)
        return x.unflatten(-1, (groups, self.group))

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"


def _largest(groups: Tensor, kept: int) -> Tensor:
    _, order = groups.sort(dim=-1, descending=True, stable=True)  # stable: on any device
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :kept], True)


def _few_largest(groups: Tensor, kept: int) -> Tensor:
    """As `_largest`: everyone is compared with everyone, which of few takes a tenth of a sort's time."""
    members = [member.contiguous() for member in groups.unbind(-1)]
    before = [torch.zeros_like(member, dtype=torch.uint8) for member in members]  # how many go first
    for first, second in combinations(range(len(members)), 2):
        wins = members[first] >= members[second]
        before[second] += wins
        before[first] += wins.logical_not_()
    return torch.stack([rank < kept for rank in before], -1)


def input_dim(run: Run, weight: Weight) -> int:
    """The dim over which the layer sums: 1, but 0 for transposed convolutions and GPT-2's ``Conv1D``.

    raises: ConfigError where the parameter has no such dim.
    """
    if len(weight.shape) < 2:
        raise ConfigError(
            f"a pattern N:M needs an input dim, but {weight.name} has the shape {list(weight.shape)}; want match to"
            " select matrices and filters only, as weights does"
        )
    kind = type(run.module(weight.name.rpartition(".")[0])).__name__  # FSDP2 puts its own name in front of it
    return 0 if "ConvTranspose" in kind or kind.endswith("Conv1D") else 1
