"""What a sweep varies: axes of settings, read off the command line, and the points on them."""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError

_RANGE = re.compile(r"(log)?range\(([^()]*)\)$")
_MOST = 10_000  # points of a grid: more is most likely a mistake


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One setting and the values it may take."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0  # 0: any number from low to high
    log: bool = False

    @property
    def continuous(self) -> bool:
        """Any number between two bounds: not for grids."""
        return not self.values

    @property
    def ordered(self) -> bool:
        """Its values are numbers that rise or fall."""
        try:
            numbers = [float(value) for value in self.values]
        except ValueError:
            return False
        return numbers in (sorted(set(numbers)), sorted(set(numbers), reverse=True))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep."""

    number: int
    settings: dict[str, str] = field(default_factory=dict)

    def words(self, sweep: Path) -> list[str]:
        """The settings for the command line, with name and folder of the point's own run."""
        own = {"name": self.name, "checkpoint.folder": str(sweep)}
        return [f"{key}={value}" for key, value in {**self.settings, **own}.items()]

    @property
    def name(self) -> str:
        """Its run's folder inside of the sweep's."""
        return f"point-{self.number}"


def split_axes(words: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """Words that are the same for all points, and the axes: `lr=1e-3,3e-4`, `x=range(0.5,0.95,0.15)`, `x=range(0,1)`.

    range(low, high, step) includes high where the steps meet it; logrange(low, high) is any number between, drawn by
    its logarithm. A list inside of brackets is one value. raises: ConfigError for a range that has no value.
    """
    fixed: list[str] = []
    axes: list[Axis] = []
    for word in words:
        key, equals, text = word.partition("=")
        axis = _axis(key, text) if equals and not word.endswith((".yaml", ".yml")) else None
        if axis is None:
            fixed.append(word)
        else:
            axes.append(axis)
    return fixed, axes


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination, the last axis fastest. raises: ConfigError for an axis without a step, or too many points."""
    for axis in axes:
        if axis.continuous:
            raise ConfigError(
                f"{axis.key}: a grid needs a step, range(low,high,step); or use --search random or tpe"
            )
    combinations = itertools.product(*(axis.values for axis in axes))
    found = list(itertools.islice(combinations, _MOST + 1))
    if len(found) > _MOST:
        raise ConfigError(
            f"the grid has more than {_MOST:,} points; give fewer values, or --search random --points N"
        )
    keys = [axis.key for axis in axes]
    return [Point(number=n, settings=dict(zip(keys, values, strict=True))) for n, values in enumerate(found)]


def drawn(axes: Sequence[Axis], count: int, seed: int = 0) -> list[Point]:
    """`count` points at random, the same for the same seed; equal points are drawn again while others exist."""
    draw, points, seen = random.Random(seed), [], set()
    for _ in range(count * 20):
        settings = {axis.key: _draw(axis, draw) for axis in axes}
        if tuple(settings.values()) not in seen:
            seen.add(tuple(settings.values()))
            points.append(Point(number=len(points), settings=settings))
        if len(points) == count:
            break
    return points


def _axis(key: str, text: str) -> Axis | None:
    if match := _RANGE.match(text.strip()):
        numbers = _numbers(key, match[2])
        low, high, step = (*numbers, 0.0, 0.0, 0.0)[:3]
        log = bool(match[1])
        if not low < high or step < 0 or (log and (low <= 0 or step)) or len(numbers) not in (2, 3):
            raise ConfigError(
                f"{key}={text}: want range(low,high), range(low,high,step) or logrange(low,high)"
            )
        if not step:
            return Axis(key=key, low=low, high=high, log=log)
        count = int((high - low) / step + 1e-9) + 1
        whole = all(number.is_integer() for number in (low, step))
        values = [low + step * n for n in range(count)]
        return Axis(key=key, values=tuple(str(int(v)) if whole else f"{v:.12g}" for v in values))
    values = _split(text)
    return Axis(key=key, values=tuple(values)) if len(values) > 1 else None


def _split(text: str) -> list[str]:
    """At commas outside of brackets and quotes."""
    parts, depth, quote, last = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[last:place].strip())
            last = place + 1
    return [part for part in [*parts, text[last:].strip()] if part]


def _numbers(key: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{key}: range({text}) wants numbers") from error


def _draw(axis: Axis, draw: random.Random) -> str:
    if not axis.continuous:
        return draw.choice(axis.values)
    if axis.log:
        return f"{axis.low * (axis.high / axis.low) ** draw.random():.6g}"
    return f"{draw.uniform(axis.low, axis.high):.6g}"
