"""Physical removal: what goes is chosen on shapes alone, cut once, and counted before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from torch import nn

from ...errors import ConfigError, NoOpError
from ..structure import Graph, Group, cut, graph_macs, graph_parameters, trace
from ..technique import EXAMPLE, Check, Example, Record, State, Widths
from ._unit_budget import Candidate, Kept, choose

Of = Literal["units", "parameters", "multiply_adds"]
"""What a budget counts: removable units · the model's parameters · its multiply-adds for one row."""

_WORDS: dict[Of, str] = {
    "units": "removable units",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
}

BLOCKS = "(blocks)"
"""The candidate whose units are the model's residual blocks."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The groups that one budget is about, and the share of them that is to go."""

    candidates: Sequence[Candidate]
    share: float
    of: Of


def example_in(state: State) -> Example:
    """Inputs for one row, as the trainer gives them to a technique that traces.

    raises: ConfigError where nobody has.
    """
    if EXAMPLE not in state:
        raise ConfigError(
            "removing units needs an example input to trace the model with; give finalize() a state with "
            '"example": {"0": tensor}, one row of what the model is called with (or {"name": tensor, …})'
        )
    inputs = state[EXAMPLE]
    return tuple(inputs.values()) if all(name.isdecimal() for name in inputs) else dict(inputs)


def widths_of(groups: Sequence[Group], multiple: Callable[[Group], int]) -> Widths:
    """Parameter → {dim: what every width that a removal leaves of it is a multiple of, in units}."""
    widths: Widths = {}
    for group in groups:
        for member in group.members:
            if member.role in ("out", "in"):
                widths.setdefault(member.name, {})[member.dim] = multiple(group)
    return widths


def refuse_wrong_budget(share: float, most: float, multiples: Sequence[int]) -> None:
    """raises: ValueError naming the setting of a removal that is out of range."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"share={share}: want more than 0 and below 1 (0.5 = half of it is removed)")
    if not 0.0 < most < 1.0:
        raise ValueError(
            f"most={most}: want more than 0 and below 1; a layer that lost all its units would leave nothing to compute"
        )
    if min(multiples) < 1:
        raise ValueError(f"multiple={min(multiples)}: want 1 or more (1 allows every width)")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside: there one row is enough for normalisation layers, and dropout does nothing."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():
            module.training = modes.get(module, model.training)


def traced(model: nn.Module, example: Example) -> Graph:
    """`structure.trace` in evaluation mode."""
    with evaluating(model):
        return trace(model, example)


def remove(model: nn.Module, graph: Graph, budgets: Sequence[Budget], example: Example) -> Record:
    """Take the lowest-scored units out of the whole ``model``, in place, until every budget is met.

    returns: the record that `structure.recut` repeats it from, with ``groups`` (units before and after),
             ``heads`` (projection → how many are left), ``removed`` (before and after) and ``checks``.
    raises:  ConfigError where a budget cannot be met; NoOpError where the model has not lost what was chosen.
    cost:    a trace before and one after; in between arithmetic on sizes.
    """
    kept = rehearse(graph, budgets)
    before = {"parameters": parameters_of(model), "multiply_adds": graph_macs(graph)}
    units, blocks = apart(graph, kept)
    with evaluating(model):  # the mode that was traced
        record = cut(model, graph, units, blocks=blocks)
    smaller = traced(model, example)
    after = {"parameters": parameters_of(model), "multiply_adds": graph_macs(smaller)}
    checks = [_check(budget, kept, before, after) for budget in budgets]
    for check in checks:
        if not check.holds:
            raise NoOpError(
                f"{check.quantity}: requested {check.requested:.6g}, but the model has lost {check.achieved:.6g}"
            )
    sizes = {group.name: group.size for group in graph.groups} | {BLOCKS: len(graph.blocks)}
    heads = [group for group in graph.groups if group.kind == "heads"]
    return {
        **record,
        "groups": {name: [sizes[name], len(units)] for name, units in kept.items()},
        "heads": {g.name: len(kept.get(g.name, range(g.size))) for g in heads},
        "removed": {what: [before[what], after[what]] for what in before},
        "checks": [asdict(check) for check in checks],
    }


def rehearse(graph: Graph, budgets: Sequence[Budget]) -> Kept:
    """The units that stay, by arithmetic on sizes alone.   raises: ConfigError where a budget cannot be met."""
    kept: Kept = {}
    for budget in budgets:
        measure = _units_gone(budget.candidates)
        if budget.of != "units":
            measure = _gone(
                graph, dict(kept), graph_macs if budget.of == "multiply_adds" else graph_parameters
            )
        kept |= choose(budget.candidates, budget.share, measure, what=_WORDS[budget.of])[0]
    return kept


def parameters_of(module: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(p.numel() for p in module.parameters())


def _units_gone(candidates: Sequence[Candidate]) -> Callable[[Kept], float]:
    total = sum(c.scores.numel() for c in candidates)

    def measure(kept: Kept) -> float:
        return sum(c.scores.numel() - len(kept[c.name]) for c in candidates if c.name in kept) / max(total, 1)

    return measure


def apart(graph: Graph, kept: Kept) -> tuple[Kept, list[str]]:
    """Kept units of groups, and the names of the blocks that go."""
    stay = kept.get(BLOCKS, range(len(graph.blocks)))
    gone = [block.name for number, block in enumerate(graph.blocks) if number not in stay]
    return {name: units for name, units in kept.items() if name != BLOCKS}, gone


def _gone(graph: Graph, already: Kept, count: Callable[..., int]) -> Callable[[Kept], float]:
    whole = count(graph)

    def measure(kept: Kept) -> float:
        units, blocks = apart(graph, {**already, **kept})
        return 1.0 - count(graph, units, blocks=blocks) / max(whole, 1)

    return measure


def _check(budget: Budget, kept: Kept, before: Mapping[str, int], after: Mapping[str, int]) -> Check:
    """Requested against achieved of one budget, counted on the model that was cut (units: on its record)."""
    if budget.of == "units":
        achieved = _units_gone(budget.candidates)(kept)
    else:
        achieved = 1.0 - after[budget.of] / max(before[budget.of], 1)
    return Check(
        quantity=f"{_WORDS[budget.of]} removed", requested=budget.share, achieved=achieved, tolerance=1e-9
    )
