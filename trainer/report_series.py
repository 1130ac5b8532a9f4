"""Lines of metrics.jsonl as curves: by name, thinned out, with the phases they belong to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Points = list[tuple[float, float]]

_NOT_CURVES = {"step", "kind", "phase", "epoch"}
_MOST_POINTS = 400  # per curve; more cannot be told apart on a screen


@dataclass(frozen=True, kw_only=True)
class Band:
    """One phase on the step axis: from `start` (exclusive) to `end`."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves by quantity, those of training and those of evaluation apart, and the phases."""

    train: Mapping[str, Points]
    evaluate: Mapping[str, Points]
    bands: Sequence[Band]
    broken: Sequence[int]  # steps whose loss was not a finite number

    @property
    def end(self) -> float:
        """The last step."""
        return self.bands[-1].end if self.bands else 0.0


def curves(lines: Iterable[Mapping[str, Any]], phases: Sequence[str] = ()) -> Curves:
    """Sorts `lines` into curves. Where a step was logged twice (a resumed run), the later line counts.

    phases: names in order, for phases that logged nothing before the first line of the next.
    """
    kinds: dict[str, dict[str, dict[float, float]]] = {"train": {}, "evaluate": {}}
    ends: dict[str, float] = {}
    broken: dict[int, bool] = {}
    for line in lines:
        step, kind = float(line.get("step") or 0), line.get("kind", "train")
        if line.get("phase") is not None:
            ends[line["phase"]] = max(step, ends.get(line["phase"], 0.0))
        if kind == "train":
            broken[int(step)] = "loss" in line and line["loss"] is None
        for name, value in _numbers(line) if kind in kinds else ():
            kinds[kind].setdefault(name, {})[step] = value
    ready = {
        kind: {name: thinned(sorted(points.items())) for name, points in found.items()}
        for kind, found in kinds.items()
    }
    return Curves(
        train=ready["train"],
        evaluate=ready["evaluate"],
        bands=_bands(ends, phases),
        broken=sorted(step for step, is_broken in broken.items() if is_broken),
    )


def thinned(points: Points, most: int = _MOST_POINTS) -> Points:
    """At most about `most` points: of each stretch its lowest and highest, so that no spike gets lost."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / (most // 2))
    kept: Points = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return sorted({points[0], *kept, points[-1]})


def smoothed(points: Points, share: float = 0.04) -> Points:
    """The mean over a window of about `share` of the curve around each point; narrower towards both ends.

    A mean that only looks back would lag behind a steep fall and make training seem worse than it was.
    """
    reach = int(share * len(points) / 2)
    result: Points = []
    for place, (step, _) in enumerate(points):
        here = min(reach, place, len(points) - 1 - place)
        window = points[place - here : place + here + 1]
        result.append((step, sum(value for _, value in window) / len(window)))
    return result


def _numbers(line: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    flat = {**line, **(line.get("metrics") or {})}
    for name, value in flat.items():
        if name not in _NOT_CURVES and isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def _bands(ends: Mapping[str, float], phases: Sequence[str]) -> list[Band]:
    order = [*(name for name in phases if name in ends), *(name for name in ends if name not in phases)]
    bands, start = [], 0.0
    for name in order:
        bands.append(Band(name=name, start=start, end=max(ends[name], start)))
        start = bands[-1].end
    return bands
