"""Trial cuts: what would a cut model do, and which attributes of its modules must follow?

Code may hold sizes as numbers: ``x.view(batch, tokens, self.heads, self.head_width)``. Whether it does cannot be seen
in the operations of one run. So the model is run again, still without values, on parameters that have been cut, and
every operation is compared with what its labels promise. Where they differ, an attribute of that module which holds
the old number is set to the new one and tried; where none helps, the group stays whole, with the operation as reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ...errors import ForgepressError
from .flow import Call, Constant
from .graph import Graph, Kept, sizes_left
from .rules import rule_of
from .rules_views import slice_bounds
from .sizes import layer_sizes
from .trace import Untraceable, run

Attributes = dict[str, dict[str, Any]]
"""Module → {attribute: new value}."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """The first operation that does something else than its labels promise."""

    step: int
    module: str
    text: str
    pairs: tuple[tuple[int, np.ndarray], ...]
    """(old number, ids that it counts), where an attribute may hold that number."""


class _Stop(ForgepressError):
    pass


def first_mismatch(model: nn.Module, graph: Graph, kept: Kept) -> Mismatch | None:
    """Run ``model`` without values as if it had been cut; None where every operation gives what is expected."""
    alive, seen = graph.alive(kept), [0]
    found: list[Mismatch] = []

    def look(call: Call) -> None:
        number = seen[0]
        seen[0] += 1
        text = _difference(graph, number, call, alive)
        if text:
            found.append(
                Mismatch(step=number, module=call.module, text=text, pairs=_pairs(graph, number, alive))
            )
            raise _Stop

    try:
        with changed(model, attributes_of(graph, model, kept)):
            run(
                model,
                graph.example,
                look,
                knows=lambda f: rule_of(f) is not None,
                shapes=graph.shapes_of(kept),
            )
    except _Stop:
        return found[0]
    except Untraceable as error:
        text = f"{error.where}: fails on what is left ({error.cause})"
        return Mismatch(step=seen[0], module=error.module, text=text, pairs=_pairs(graph, seen[0], alive))
    return None


def _difference(graph: Graph, number: int, call: Call, alive: np.ndarray) -> str | None:
    if number >= len(graph.steps) or graph.steps[number].where != call.where:
        return f"{call.where}: the model takes another path once it is smaller"
    step = graph.steps[number]
    for result, labelled in zip(call.results(), step.outs, strict=True):
        wanted = sizes_left(labelled, alive)
        if wanted != tuple(result.shape):
            return f"{step.where}: gives {list(result.shape)} where {list(wanted or ())} is left"
    for argument, ids in step.counts:
        value, wanted = _argument(call, argument), int(alive[ids].sum())
        if value != wanted:
            return f"{step.where}: {argument}={value} does not follow what is removed; {wanted} is left"
    return None


def _argument(call: Call, name: str) -> int:
    if call.name == "slice":
        size = call["self"].shape[call["dim"]]
        return slice_bounds(call.get("start"), call.get("end"), size)[name == "end"]
    return call[name]


def _pairs(graph: Graph, number: int, alive: np.ndarray) -> tuple[tuple[int, np.ndarray], ...]:
    """Sizes of this step's results, and numbers it counts, that change."""
    if number >= len(graph.steps):
        return ()
    step, pairs = graph.steps[number], []
    for out in step.outs:
        for dims, ids in out.factors:
            for axis in range(len(dims)):
                lines = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)[:, 0]
                pairs.append((len(lines), lines))
    pairs += [(len(ids), ids) for _, ids in step.counts]
    return tuple((count, ids) for count, ids in pairs if count in step.integers and not alive[ids].all())


def settle(model: nn.Module, graph: Graph) -> Mismatch | None:
    """Let attributes follow until a trial cut of all free groups runs as expected; else what stands in the way."""
    while True:
        mismatch = first_mismatch(model, graph, trial(graph))
        if mismatch is None or not _follow(model, graph, mismatch):
            return mismatch


_TRIAL_SHARES = {"heads": 0.5, "width": 0.34, "neurons": 0.41, "channels": 0.27}


def trial(graph: Graph) -> dict[str, list[int]]:
    """Some units of every free group, spread over it; other shares of each kind, so that no ratio stays by chance.

    (``view(…, heads, width // heads)`` works as long as heads and width shrink alike.)
    """
    kept = {}
    for group in graph.free():
        gone = max(int(group.size * _TRIAL_SHARES[group.kind]), 1)
        places = {(2 * i + 1) * group.size // (2 * gone) for i in range(gone)}
        kept[group.name] = [unit for unit in range(group.size) if unit not in places]
    return kept


def _follow(model: nn.Module, graph: Graph, mismatch: Mismatch) -> bool:
    """Try the attributes that hold a number in question; keep the first with which this step is as expected.

    What helps in one module is done in all modules of its class at the same kind of operation.
    """
    if mismatch.step >= len(graph.steps):
        return False
    here = graph.steps[mismatch.step]
    for old, _ in mismatch.pairs:
        for attribute, place in _holding(model.get_submodule(here.module), old):
            known = {(c.module, c.attribute, c.place) for c in graph.constants}
            more = [
                c
                for c in _alike(model, graph, mismatch.step, attribute, place)
                if (c.module, c.attribute, c.place) not in known
            ]
            if not more:
                continue
            graph.constants.extend(more)
            then = first_mismatch(model, graph, trial(graph))
            if then is None or then.step > mismatch.step:
                return True
            del graph.constants[-len(more) :]
    return False


def _holding(module: nn.Module, number: int) -> Iterator[tuple[str, int | None]]:
    """Attributes of ``module`` that are ``number``, or tuples and lists that hold it."""
    for attribute, value in vars(module).items():
        if attribute.startswith("_"):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value == number:
            yield attribute, None
        elif isinstance(value, (tuple, list)):
            for place, item in enumerate(value):
                if isinstance(item, int) and not isinstance(item, bool) and item == number:
                    yield attribute, place


def _alike(model: nn.Module, graph: Graph, number: int, attribute: str, place: int | None) -> list[Constant]:
    here = graph.steps[number]
    kind, everything = type(model.get_submodule(here.module)), np.zeros(len(graph.units), dtype=bool)
    found: dict[str, Constant] = {}
    for other, step in enumerate(graph.steps):
        module = model.get_submodule(step.module)
        if step.name != here.name or type(module) is not kind or step.module in found:
            continue
        for old, ids in _pairs(graph, other, everything):
            if (attribute, place) in _holding(module, old):
                found[step.module] = Constant(module=step.module, attribute=attribute, place=place, ids=ids)
                break
    return list(found.values())


def attributes_of(graph: Graph, model: nn.Module, kept: Kept) -> Attributes:
    """New values of all attributes that count what is removed: sizes that layers say, and numbers in code."""
    alive = graph.alive(kept)
    groups = {c.module: int(alive[c.ids].sum()) for c in graph.constants if c.attribute == "groups"}
    changed_attributes = layer_sizes(model, graph.shapes_of(kept), groups)
    for constant in graph.constants:
        count = int(alive[constant.ids].sum())
        module = model.get_submodule(constant.module)
        own = changed_attributes.setdefault(constant.module, {})
        if constant.place is None:
            own[constant.attribute] = count
        else:
            value = list(own.get(constant.attribute, getattr(module, constant.attribute)))
            value[constant.place] = count
            own[constant.attribute] = value
    return {name: new for name, values in changed_attributes.items() if (new := _news(model, name, values))}


def _news(model: nn.Module, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    module = model.get_submodule(name)
    return {
        attribute: value for attribute, value in values.items() if _plain(getattr(module, attribute)) != value
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write them; a list becomes a tuple where the module has a tuple."""
    for name, values in attributes.items():
        module = model.get_submodule(name)
        for attribute, value in values.items():
            old = getattr(module, attribute, None)
            setattr(module, attribute, type(old)(value) if isinstance(old, tuple) else value)


@contextmanager
def changed(model: nn.Module, attributes: Attributes) -> Iterator[None]:
    """``attributes`` for a while."""
    before = {
        name: {a: getattr(model.get_submodule(name), a) for a in values}
        for name, values in attributes.items()
    }
    set_attributes(model, attributes)
    try:
        yield
    finally:
        for name, values in before.items():
            for attribute, value in values.items():
                setattr(model.get_submodule(name), attribute, value)
