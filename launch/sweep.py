"""Sweeps: many runs of one config, each a point of settings. All of it is in files: killed, it goes on."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .runs import RunLine, read_run

_CLOSED = (
    "finished",
    "failed",
    "running",
)  # a point that failed is not run again by itself; one that was stopped is
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


def keep_points(sweep: Path, config: Sequence[str], points: Sequence[Point]) -> list[Point]:
    """Writes the points of a new sweep, or gives those that it has. raises: ConfigError where they are others."""
    path = sweep / "sweep.json"
    given = {"config": list(config), "points": [point.settings for point in points]}
    if path.exists():
        kept = json.loads(path.read_text())
        if kept != given:
            raise ConfigError(
                f"{sweep} holds another sweep; give --name another, or the same settings to go on"
            )
    else:
        sweep.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(given, indent=2) + "\n")
        os.replace(partial, path)
    return list(points)


def open_points(sweep: Path, points: Sequence[Point]) -> list[Point]:
    """Points that have neither finished nor failed: those are not run again."""
    return [
        p for p in points if not (sweep / p.name).exists() or read_run(sweep / p.name).state not in _CLOSED
    ]


def run_points(
    sweep: Path, config: Sequence[str], points: Sequence[Point], *, at_once: int, say: Callable[[str], None]
) -> int:
    """Runs what is open, `at_once` side by side, each as a `forgepress train` of its own; how many failed.

    Ctrl-C asks all that run to save; the same sweep then goes on with them.
    """
    waiting, running, failed = open_points(sweep, points), {}, 0
    say(f"{len(points)} points, {len(points) - len(waiting)} of them done; {at_once} at a time")
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                point = waiting.pop(0)
                running[point.number] = (point, _start(sweep, config, point))
            for number, (point, process) in list(running.items()):
                if process.poll() is not None:
                    del running[number]
                    failed += process.returncode != 0
                    say(_told(point, read_run(sweep / point.name), process.returncode, sweep))
            time.sleep(0.05)
    except BaseException:
        for _, process in running.values():
            process.terminate()  # they save; and one that cannot ends with its launcher
        for _, process in running.values():
            process.wait()
        raise
    return failed


def _start(sweep: Path, config: Sequence[str], point: Point) -> "subprocess.Popen[bytes]":
    folder = sweep / point.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "forgepress.launch", "train", *config, *point.words(sweep)]
    with (folder / "output.log").open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _told(point: Point, run: RunLine, code: int, sweep: Path) -> str:
    settings = " ".join(f"{key}={value}" for key, value in point.settings.items())
    result = f"{run.metric} {run.value:.4g}" if run.value is not None else ""
    trouble = f"exit code {code}: {run.reason or 'see'} {sweep / point.name / 'output.log'}" if code else ""
    return f"{point.name}  {settings}  {run.state if not code else 'not finished'}  {result}{trouble}"


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


def results(sweep: Path, points: Sequence[Point]) -> list[dict[str, Any]]:
    """One line for each point: settings, state, metrics and the smallest artifact's bytes, as far as they are known."""
    lines = []
    for point in points:
        run = (
            read_run(sweep / point.name)
            if (sweep / point.name).exists()
            else RunLine(name=point.name, state="open")
        )
        path = sweep / point.name / "summary.json"
        summary = json.loads(path.read_text()) if path.exists() else {}
        sizes = [artifact["bytes"] for artifact in summary.get("artifacts", ())]
        quality = {
            name: value
            for name, value in summary.get("metrics", {}).items()
            if isinstance(value, int | float)
        }
        size = {"bytes": min(sizes)} if sizes else {}
        lines.append({"point": point.number, **point.settings, "state": run.state, **quality, **size})
    return lines
