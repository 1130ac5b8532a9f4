"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere, nothing on other ranks."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_REFRESH = 0.25  # seconds between two drawings of the bar
_BINDS = 0.01  # share of the time that steps wait for data beyond which the progress says what for


class Progress:
    """Step, loss, samples per second, share of time spent waiting for data, phase and time left.

    total_steps: optimizer steps of the whole run; first_step: where a resumed run goes on from.
    every:       steps between two lines where the output is not a terminal. A terminal is drawn by the clock.
    rank:        other ranks than 0 print nothing.

    cost: an update that is not due compares one number and returns (well under 5 µs); values stay tensors or
    callables and are only read when printed, so that the device is not waited for at every step.
    """

    def __init__(
        self,
        total_steps: int,
        every: int = 10,
        *,
        first_step: int = 0,
        rank: int = 0,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._every, self._clock = total_steps, max(1, every), clock
        self._silent = rank != 0
        self._console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
        self._terminal = self._console.is_terminal and not self._silent
        self._phase = ""
        self._step = first_step
        self._started = self._last_time = clock()
        self._first_step, self._last_samples, self._last_wait = first_step, 0.0, 0.0
        self._due_time = self._last_time  # the bar: when to draw next
        self._due_step = _next_multiple(first_step, self._every)  # lines: at which step to print next
        self._bar, self._task = self._open_bar() if self._terminal else (None, None)

    def update(
        self,
        step: int,
        *,
        loss: Any = None,
        samples: int | Callable[[], int] = 0,
        wait_seconds: float | Callable[[], float] = 0.0,
        binds: Callable[[], str] = lambda: "",
        **values: Any,
    ) -> None:
        """Optimizer step `step` (counted over the run, from 1) is done.

        loss:         number, one-element tensor or callable.
        samples:      samples so far, cumulative; wait_seconds: seconds waited for data so far, cumulative.
        binds:        what the wait for data is spent on, asked for where there was one.
        values:       further numbers to show by name (the same kinds as `loss`).
        """
        if self._silent:
            return
        if self._terminal:
            if self._clock() < self._due_time and step < self._total:
                return
        elif step < self._due_step and step < self._total:
            return
        self._show(step, {"loss": loss, **values}, _read(samples), _read(wait_seconds), binds)

    def phase(self, name: str) -> None:
        """From here on the run is in phase `name`; said once as a line."""
        if self._silent or name == self._phase:
            return
        self._phase = name
        self.print(f"phase {name} (after step {self._step} of {self._total})")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, phase=name, refresh=True)

    def print(self, text: Any) -> None:
        """Prints a text, or anything that rich can draw, above the bar. Square brackets stay as they are."""
        if not self._silent:
            self._console.print(text, markup=False)

    def close(self) -> None:
        """Ends the bar and gives the terminal back; calling it twice is harmless."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._terminal = False
        self._silent = True

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_bar(self) -> tuple[Bar, Any]:
        bar = Bar(
            TextColumn("{task.fields[phase]}", style="bold", markup=False),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            auto_refresh=False,  # no thread of its own: it is drawn when an update is due
            speed_estimate_period=60,
        )
        bar.start()
        return bar, bar.add_task("", total=self._total, completed=self._step, phase="", shown="")

    def _show(
        self, step: int, values: dict[str, Any], samples: float, wait_seconds: float, binds: Callable[[], str]
    ) -> None:
        now = self._clock()
        seconds = max(now - self._last_time, 1e-9)
        shown = [f"{name} {_number(_read(value))}" for name, value in values.items() if value is not None]
        if samples > self._last_samples:
            unit = "/s" if self._bar is not None else " samples/s"  # the bar must fit 80 columns
            shown.append(f"{_number((samples - self._last_samples) / seconds)}{unit}")
        if wait_seconds > self._last_wait:
            share = min(1.0, (wait_seconds - self._last_wait) / seconds)
            why = binds() if share > _BINDS else ""
            shown.append(f"data wait {share:.0%}{f' ({why})' if why else ''}")
        self._step, self._last_time = step, now
        self._last_samples, self._last_wait = samples, wait_seconds
        if self._bar is not None and self._task is not None:
            self._due_time = now + _REFRESH
            self._bar.update(self._task, completed=step, shown=" · ".join(shown), refresh=True)
        else:
            self._due_step = _next_multiple(step, self._every)
            left = (now - self._started) / max(1, step - self._first_step) * (self._total - step)
            head = f"[{self._phase}] " if self._phase else ""
            self.print(f"{head}step {step}/{self._total} · {' · '.join([*shown, f'left {duration(left)}'])}")


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3:07 min, 2:15:00 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def _next_multiple(step: int, every: int) -> int:
    return (step // every + 1) * every


def _read(value: Any) -> Any:
    """The number behind a callable or a one-element tensor; waits for the device."""
    if callable(value):
        value = value()
    item = getattr(value, "item", None)
    return item() if item is not None else value


def _number(value: float) -> str:
    """Four digits that mean something, without an exponent where a person does not need one."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
