"""Sweeps: many runs of one config, each a point of settings. All of it is in files: killed, it goes on."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .runs import RunLine, read_run
from .sweep_points import Axis, Point, drawn, grid

_FILE = "sweep.json"
_CLOSED = (
    "finished",
    "failed",
    "running",
)  # a point that failed is not run again by itself; one that was stopped is


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep's folder; `sweep.json` in it holds what is asked for and the points that are known so far."""

    folder: Path
    config: tuple[str, ...]  # words that are the same for all points
    axes: tuple[Axis, ...]
    search: str = "grid"  # grid, random or tpe
    count: int = 0  # points of a random or tpe search
    goals: tuple[str, ...] = ()  # metrics that tpe searches by; (): the run's main metric and its bytes

    def known(self) -> list[Point]:
        """The points so far, in order."""
        kept = json.loads((self.folder / _FILE).read_text())["points"]
        return [Point(number=int(number), settings=settings) for number, settings in kept.items()]

    def all_points(self) -> list[Point]:
        """Those that need no result of another: all but those of tpe."""
        if self.search == "grid":
            return grid(self.axes)
        return drawn(self.axes, self.count) if self.search == "random" else []

    def keep(self) -> list[Point]:
        """Makes the folder of a new sweep, or takes up the one that is there; its points.

        raises: ConfigError where the folder holds another sweep.
        """
        path = self.folder / _FILE
        if path.exists():
            kept = json.loads(path.read_text())
            if {key: kept[key] for key in self._what()} != self._what():
                raise ConfigError(
                    f"{self.folder} holds another sweep; give --name another, or the same settings to go on"
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(self.all_points())
        return self.known()

    def ask(self, number: int | None = None) -> Point | None:
        """tpe's next point, chosen by what is known by now and written down; None when there are enough.

        number: which point it is to be (None: the first that is not known); one that is known stays as it is.
        """
        if self.search != "tpe":
            return None
        with _alone(self.folder):
            points = {point.number: point for point in self.known()}
            if number is None:
                number = next((n for n in range(self.count) if n not in points), None)
            if number is None or number in points:
                return None if number is None else points[number]
            from .sweep_search import suggest

            settings = suggest(self.axes, results(self.folder, list(points.values())), self.goals)
            point = Point(number=number, settings=settings)
            self._write(sorted([*points.values(), point], key=lambda point: point.number))
            return point

    def open_points(self) -> list[Point]:
        """Points that have neither finished nor failed: those are not run again."""
        known = [(point, self.folder / point.name) for point in self.known()]
        return [point for point, run in known if not run.exists() or read_run(run).state not in _CLOSED]

    def _what(self) -> dict[str, Any]:
        own = {"config": self.config, "axes": [asdict(axis) for axis in self.axes], "search": self.search}
        return json.loads(json.dumps({**own, "count": self.count, "goals": self.goals}))

    def _write(self, points: Sequence[Point]) -> None:
        partial = self.folder / f"{_FILE}.partial"
        settings = {point.number: point.settings for point in points}
        partial.write_text(json.dumps({**self._what(), "points": settings}, indent=2) + "\n")
        os.replace(partial, self.folder / _FILE)


def read_sweep(folder: Path) -> Sweep:
    """The sweep that `folder` holds. raises: ConfigError where it holds none."""
    try:
        kept = json.loads((folder / _FILE).read_text())
    except OSError as error:
        raise ConfigError(
            f"{folder} holds no sweep (no {_FILE}); forgepress sweep CONFIG begins one"
        ) from error
    axes = tuple(Axis(**{**axis, "values": tuple(axis["values"])}) for axis in kept["axes"])
    words, goals = tuple(kept["config"]), tuple(kept["goals"])
    return Sweep(
        folder=folder, config=words, axes=axes, search=kept["search"], count=kept["count"], goals=goals
    )


def run_points(sweep: Sweep, *, at_once: int, say: Callable[[str], None], more: Sequence[str] = ()) -> int:
    """Runs what is open, `at_once` side by side, each as a `forgepress train` of its own; how many failed.

    more: words for each of them. Ctrl-C asks all that run to save; the same sweep then goes on with them.
    """
    waiting, running, failed = sweep.open_points(), {}, 0
    total = sweep.count if sweep.search == "tpe" else len(sweep.known())
    say(f"{total} points, {len(sweep.known()) - len(waiting)} of them done; {at_once} at a time")
    try:
        while True:
            while len(running) < at_once and (point := waiting.pop(0) if waiting else sweep.ask()):
                running[point.number] = (point, _start(sweep, point, more))
            if not running:
                return failed
            for number, (point, process) in list(running.items()):
                if process.poll() is not None:
                    del running[number]
                    failed += process.returncode != 0
                    say(_told(point, process.returncode, sweep.folder))
            time.sleep(0.05)
    except BaseException:
        for _, process in running.values():
            process.terminate()  # they save; and one that cannot ends with its launcher
        for _, process in running.values():
            process.wait()
        raise


def _start(sweep: Sweep, point: Point, more: Sequence[str]) -> "subprocess.Popen[bytes]":
    folder = sweep.folder / point.name
    folder.mkdir(parents=True, exist_ok=True)
    words = [*sweep.config, *point.words(sweep.folder), *more]
    command = [sys.executable, "-m", "forgepress.launch", "train", *words]
    with (folder / "output.log").open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _told(point: Point, code: int, sweep: Path) -> str:
    run = read_run(sweep / point.name)
    settings = " ".join(f"{key}={value}" for key, value in point.settings.items())
    result = f"{run.metric} {run.value:.4g}" if run.value is not None else ""
    trouble = f"exit code {code}: {run.reason or 'see'} {sweep / point.name / 'output.log'}" if code else ""
    return f"{point.name}  {settings}  {run.state if not code else 'not finished'}  {result}{trouble}"


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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Tasks of one array may ask for their points at once."""
    with (folder / f"{_FILE}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
