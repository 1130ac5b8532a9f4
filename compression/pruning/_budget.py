"""How many zeros each parameter gets: one share for all, a share for each, given shares, or Erdős–Rényi's.

A budget is a set of weights that one cut goes through. Everything here gives whole numbers that are equal on every
mesh, and asks for no more than the weights that a rank holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..quantile import exact_quantile
from ..run import Run
from ..technique import Check
from ..weight import Weight
from ._mask import largest_anywhere, zero_fraction
from ._pattern import Pattern, input_dim

Scope = Literal["global", "uniform", "layer", "per_layer", "erdos_renyi", "erdos_renyi_kernel"]
Share = float | str
"""A share of zeros, or a pattern such as ``"2:4"``."""
Sparsity = Share | dict[str, Share]

_TOGETHER = ("global", "per_layer")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Weights that one cut goes through, and what is asked of them."""

    weights: list[Weight]
    count: int
    """Elements in the whole model that ``weights`` on all ranks stand for."""
    share: float
    """Share of zeros at the end of the ramp; where there is a pattern, that follows from it."""
    together: bool
    """True: sums run over the whole mesh, and every rank must take part. False: one weight, over its parts."""
    label: str = ""
    pattern: Pattern | None = None

    def zeros(self, progress: float) -> int:
        """Whole number of zeros that this budget has at ``progress`` (0 to 1) of the ramp."""
        return round(self.share * progress * self.count)

    def add(self, run: Run, values: Sequence[Tensor]) -> int:
        """Sum of one number per weight over everything that the budget stands for. Collective as ``together`` says."""
        if self.together:
            return round(float(run.total(self.weights, values)))
        return int(self.weights[0].add_over_parts(values[0]))

    def kth(self, run: Run, k: int, values: Sequence[Tensor] | None = None) -> float:
        """The ``k``-th smallest magnitude (from 1) of the weights, or of ``values``. Collective as `add`."""
        held = list(values) if values is not None else [weight.local for weight in self.weights]
        if self.together:
            return float(run.kth_magnitude(self.weights, k, held))
        return float(exact_quantile(held, k, self.weights[0].add_over_parts))


def check_sparsity(sparsity: Sparsity, scope: Scope) -> None:
    """raises: ValueError where a share is out of range or does not go with ``scope``."""
    if isinstance(sparsity, dict) != (scope == "per_layer"):
        raise ValueError(
            f"scope={scope!r} with sparsity={sparsity!r}: a mapping of globs goes with per_layer,"
            " one number or pattern with the other scopes"
        )
    if sparsity == {}:
        raise ValueError("sparsity={}: want at least one glob with its share")
    for share in sparsity.values() if isinstance(sparsity, dict) else [sparsity]:
        if isinstance(share, str):
            Pattern.parse(share)
            if scope.startswith("erdos_renyi"):
                raise ValueError(
                    f"scope={scope!r} with sparsity={share!r}: a pattern leaves no layer more than another;"
                    " want a share from 0 to below 1, or another scope"
                )
        elif not 0.0 <= share < 1.0:
            raise ValueError(
                f"sparsity={share}: want a share from 0 to below 1 (0.8 = 80 % zeros), or a pattern in quotes"
                ' such as "2:4" (without them YAML reads it as a number)'
            )


def matched_by(match: str | tuple[str, ...], sparsity: Sparsity | None) -> str | tuple[str, ...]:
    """The globs of a mapping where there is one, else ``match``."""
    return tuple(sparsity) if isinstance(sparsity, dict) else match


def budgets(run: Run, match: str | tuple[str, ...], sparsity: Sparsity, scope: Scope) -> list[Budget]:
    """The cuts of a technique; those that run over the whole mesh are the same ones on every rank. Collective.

    raises: ConfigError where a pattern meets a parameter without an input dim.
    """
    if isinstance(sparsity, dict):
        return [_one(run, glob, share, label=glob) for glob, share in sparsity.items()]
    if scope == "global" or isinstance(sparsity, str):
        return [_one(run, match, sparsity)]
    weights = run.weights(match)
    if scope.startswith("erdos_renyi"):
        _note_erdos_renyi(run, weights, sparsity, kernel=scope == "erdos_renyi_kernel")
    return [
        Budget(
            weights=[weight],
            count=weight.shape.numel(),
            share=run.note(weight)["share"] if scope.startswith("erdos_renyi") else sparsity,
            together=False,
            label=weight.name,
        )
        for weight in weights
    ]


def _one(run: Run, match: str | tuple[str, ...], share: Share, label: str = "") -> Budget:
    weights = run.weights(match)
    count = run.count(weights)
    if isinstance(share, float | int):
        return Budget(weights=weights, count=count, share=share, together=True, label=label)
    pattern = Pattern.parse(share)
    zeros = sum_once(run, weights, [pattern.zeros(weight, input_dim(run, weight), 1.0) for weight in weights])
    return Budget(
        weights=weights, count=count, share=zeros / max(count, 1), together=True, label=label, pattern=pattern
    )


def sum_once(run: Run, weights: Sequence[Weight], values: Sequence[int]) -> int:
    """Sum of one whole number per parameter over all parameters of the whole model, on every mesh. Collective.

    Every part brings its part of the number; the sum of those is a whole one up to rounding, which is taken off.
    """
    parts = [
        torch.tensor(value * w.local.numel() / max(w.shape.numel(), 1), dtype=torch.float64)
        for w, value in zip(weights, values, strict=True)
    ]
    return round(float(run.total(weights, parts)))


# ── Erdős–Rényi


def _note_erdos_renyi(run: Run, weights: Sequence[Weight], sparsity: float, *, kernel: bool) -> None:
    """Each parameter's share of zeros, kept in its note: shapes do not change within a phase."""
    if run.memory.get("shares"):
        return
    shapes = [tuple(weight.shape) for weight in weights]

    def total(values: Sequence[int]) -> int:
        return sum_once(run, weights, values)

    def largest(value: float) -> float:
        return largest_anywhere(run, value)

    shares = erdos_renyi(shapes, sparsity, kernel=kernel, total=total, largest=largest)
    for weight, share in zip(weights, shares, strict=True):
        run.note(weight)["share"] = share
    run.memory["shares"] = True


def erdos_renyi(
    shapes: Sequence[tuple[int, ...]],
    sparsity: float,
    *,
    kernel: bool,
    total: Callable[[Sequence[int]], int] = sum,
    largest: Callable[[float], float] = float,
) -> list[float]:
    """Share of zeros of each parameter, such that all together have ``sparsity``.

    A parameter keeps ``ε · (out + in) / (out · in)`` of its weights (``kernel``: ``ε · Σ dims / Π dims``), so that the
    number kept grows with its width and not with its area; one for which that is more than all is kept whole, and ε is
    found anew for the others. Vectors count as width by one.

    shapes: of the parameters held here, dims 0 and 1 outputs and inputs.
    total, largest: sum of one number for each shape, and the largest number, over all ranks.
    source: Mocanu et al. 2018, arXiv:1707.04780 (the formula); Evci et al. 2020, arXiv:1911.11134, section 3
        (kernels, layers that stay dense).
    """
    counts = [torch.Size(shape).numel() for shape in shapes]
    widths = [sum(shape if kernel else (*shape, 1)[:2]) for shape in shapes]
    # What the formula keeps for ε = 1: whole numbers, so that their sum has the same bits in any order.
    kept = [width * _area(shape, kernel) for shape, width in zip(shapes, widths, strict=True)]
    whole = [False] * len(shapes)
    wanted = round((1.0 - sparsity) * total(counts))
    while True:
        rest = wanted - total([n if full else 0 for n, full in zip(counts, whole, strict=True)])
        scale = rest / max(total([0 if full else k for k, full in zip(kept, whole, strict=True)]), 1)
        raw = [0.0 if full else k / max(n, 1) for k, n, full in zip(kept, counts, whole, strict=True)]
        top = largest(max(raw, default=0.0))
        if scale * top <= 1.0:
            return [0.0 if full else 1.0 - scale * r for r, full in zip(raw, whole, strict=True)]
        whole = [full or r == top for r, full in zip(raw, whole, strict=True)]


def _area(shape: tuple[int, ...], kernel: bool) -> int:
    """Kernel positions, for which the formula without ``kernel`` keeps the same number each."""
    return 1 if kernel else torch.Size(shape[2:]).numel()


# ── requested against achieved


def budget_checks(
    run: Run, match: str | tuple[str, ...], found: Sequence[Budget], progress: float
) -> list[Check]:
    """Zeros of each scope at ``progress`` of the ramp against those there are; the same lines on every rank.

    Budgets over the whole mesh have a line each. Where each parameter has its own, stages hold different ones: their
    lines are one of all zeros, and one of the parameters that have fewer than their share. Collective.
    """
    lines: list[Check] = []
    alone = [budget for budget in found if not budget.together]
    for budget in found:
        if budget.together:
            lines += _lines(run, budget, progress)
    if len(alone) < len(found) or lines:
        return lines
    weights = run.weights(match)
    wanted = sum_once(run, weights, [budget.zeros(progress) for budget in alone])
    short = [int(_zeros_there(run, budget) < budget.zeros(progress)) for budget in alone]
    count = max(run.count(weights), 1)
    return [
        Check(
            quantity="sparsity",
            requested=wanted / count,
            achieved=zero_fraction(run, weights),
            tolerance=0.5 / count,
        ),
        Check(
            quantity="layers with too few zeros",
            requested=0.0,
            achieved=float(sum_once(run, weights, short)),
            at_least=False,
        ),
    ]


def _lines(run: Run, budget: Budget, progress: float) -> list[Check]:
    of = f" of {budget.label}" if budget.label else ""
    count = max(budget.count, 1)
    zeros = budget.zeros(progress)
    lines = []
    if budget.pattern is not None:
        pattern = budget.pattern
        zeros = sum_once(
            run,
            budget.weights,
            [pattern.zeros(weight, input_dim(run, weight), progress) for weight in budget.weights],
        )
        off = sum_once(
            run,
            budget.weights,
            [pattern.broken(weight, input_dim(run, weight), progress) for weight in budget.weights],
        )
        lines = [
            Check(
                quantity=f"parameters{of} off {pattern}", requested=0.0, achieved=float(off), at_least=False
            )
        ]
    sparsity = Check(
        quantity=f"sparsity{of}",
        requested=zeros / count if budget.count or not budget.share else budget.share,
        achieved=zero_fraction(run, budget.weights),
        tolerance=0.5 / count,
    )
    return [sparsity, *lines]


def _zeros_there(run: Run, budget: Budget) -> int:
    return budget.add(run, [(weight.live() == 0).sum() for weight in budget.weights])
