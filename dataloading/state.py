"""A loader's position as readable JSON, and what must be the same when a run goes on from it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import DataError
from .bijection import SORTED
from .mixing import MixedOrder
from .order import Order
from .plan import Plan, Position

VERSION = 2
_CHANGED = "the data have changed since; put back the data that the run began with, or begin anew"
_OTHER = "the order would be another one; set it back, or begin anew"
_WANTED = {
    "version": "this state is of another version; resume with the version that wrote it",
    "fingerprint": _CHANGED,
    "rows": _CHANGED,
    "seed": "the order would be another one; set seed back, or begin anew",
    "shuffle": "the order would be another one; set data.shuffle back, or begin anew",
    "order": _OTHER,
}


def read_position(state: Mapping[str, Any], mine: Mapping[str, Any]) -> Position:
    """The position in `state`, a value of `Loader.state_dict`, where that of the present loader is `mine`.

    raises: DataError for other data, another seed or another order: rows would be repeated and lost.
    """
    state = _of_version_1(state)
    if missing := sorted(mine.keys() - state.keys()):
        raise DataError(f"loader state lacks {', '.join(missing)}; want what Loader.state_dict gave")
    for key, advice in _WANTED.items():
        if state[key] != mine[key]:
            raise DataError(f"loader state has {key} {state[key]}, this run has {mine[key]}: {advice}")
    numbers = {key: state[key] for key in ("epoch", "window", "consumed", "index")}
    if any(type(number) is not int or number < 0 for number in numbers.values()):
        said = ", ".join(f"{key} {number!r}" for key, number in numbers.items())
        raise DataError(f"loader state has {said}; want 0 or more: the checkpoint is damaged")
    return Position(**numbers)


def _of_version_1(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """States of the first version knew whole epochs of one window alone."""
    rows = state.get("rows")
    if state.get("version") != 1 or type(rows) is not int or rows > SORTED:
        return state
    order = {"kind": "rows", "shuffle": state.get("shuffle")}
    return {**state, "version": VERSION, "order": order, "window": 0, "index": 0}


def resume(order: Order, state: Mapping[str, Any], mine: Mapping[str, Any]) -> tuple[Order, Position]:
    """The order to go on with, and where. raises: DataError as `read_position`, or for a place that is not there."""
    at = read_position(state, mine)
    if isinstance(order, MixedOrder):
        order = order.resumed(state["mix"], at.epoch, at.consumed)
    rows = order.count(at.epoch, at.window) if at.window < order.windows(at.epoch) else -1
    if at.consumed > rows:
        raise DataError(
            f"loader state has consumed {at.consumed} of window {at.window}, which has {max(rows, 0)} rows: the "
            "checkpoint is damaged"
        )
    return order, at


def with_order(plan: Plan, order: Order) -> Plan:
    """The plan with another order."""
    return plan if order is plan.order else replace(plan, order=order)
