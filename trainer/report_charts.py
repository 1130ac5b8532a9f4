"""Charts as SVG text: lines over steps with phases behind them, and bars. Colours come from the page's style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .figures import metric_text
from .report_series import Band, Points

_WIDTH, _HEIGHT = 460, 250  # small enough to be read on a phone, where the picture is about 340 wide
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 26, 30
_LINEAR = ("learning_rate",)  # a schedule is known by its shape, which a logarithm would bend
_CHARACTER = 6.6  # width of a character in the chart's small type


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. `style` is its class in the style sheet; `dots` marks each point; `faint` is noise behind another."""

    label: str
    points: Points
    style: str
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class _Scale:
    """From data to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


def line_chart(
    lines: Sequence[Line], bands: Sequence[Band], *, name: str, title: str, percent: bool = False
) -> str:
    """A figure with title, legend with last values, and curves over steps. "" where there is nothing to draw."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    values = [value for line in lines for _, value in line.points]
    last = max(step for line in lines for step, _ in line.points)
    x = _Scale(0.0, max(last, bands[-1].end if bands else 0.0, 1.0), _LEFT, _WIDTH - _RIGHT)
    y, marks = _vertical(values, percent, name in _LINEAR)
    parts = [_bands(bands, x), _grid(y, marks, percent), _steps(x)]
    parts += [_curve(line, x, y) for line in lines]
    note = ' <span class="quiet">log scale</span>' if y.logarithmic else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{note}</figcaption>{_legend(lines, name)}'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} over steps">'
        f"{''.join(parts)}</svg></figure>"
    )


def bar(share: float, style: str = "") -> str:
    """A horizontal bar filled to `share` (0 to 1)."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<span class="bar {style}" aria-hidden="true"><i style="width:{width:.2f}%"></i></span>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from about `low` to `high`: steps of 1, 2 or 5 times a power of ten, at most `most` + 1 of them."""
    span = (high - low) or abs(high) or 1.0
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _vertical(values: list[float], percent: bool, linear: bool) -> tuple[_Scale, list[float]]:
    low, high = min(values), max(values)
    if low > 0 and high / low > 30 and not percent and not linear:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if len(exponents) <= 4 else (1,)
        marks = [factor * 10.0**power for power in exponents for factor in factors]
        marks = [mark for mark in marks if low * 0.9 <= mark <= high * 1.1]
        marks = marks[:: max(1, math.ceil(len(marks) / 8))]
        return _Scale(low * 0.9, high * 1.1, _HEIGHT - _BOTTOM, _TOP, True), marks
    marks = ticks(low, high, 4)
    if percent:
        marks = [mark for mark in marks if mark <= 1.0 + 1e-9]
        high = min(1.0, max(marks[-1], high))
        return _Scale(max(0.0, marks[0]), max(high, marks[-1]), _HEIGHT - _BOTTOM, _TOP), marks
    return _Scale(marks[0], marks[-1], _HEIGHT - _BOTTOM, _TOP), marks


def _bands(bands: Sequence[Band], x: _Scale) -> str:
    parts = []
    for number, band in enumerate(bands, 1):
        left, right = x(band.start), x(band.end)
        room = int((right - left - 8) / _CHARACTER)
        label = next((text for text in (f"{number} {band.name}", str(number)) if len(text) <= room), "")
        parts.append(
            f"<g><title>phase {number}, {escape(band.name)}: steps {band.start + 1:,.0f} to {band.end:,.0f}</title>"
            f'<rect class="band{number % 2}" x="{left:.1f}" y="4" width="{right - left:.1f}" '
            f'height="{_HEIGHT - _BOTTOM - 4}"/>'
            f'<text class="phase" x="{left + 5:.1f}" y="17">{escape(label)}</text></g>'
        )
    return "".join(parts)


def _grid(y: _Scale, marks: Sequence[float], percent: bool) -> str:
    parts = []
    for mark in marks:
        height = y(mark)
        if not _TOP - 1 <= height <= _HEIGHT - _BOTTOM + 1:
            continue
        text = f"{mark * 100:.4g} %" if percent else _short(mark)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{text}</text>'
        )
    return "".join(parts)


def _steps(x: _Scale) -> str:
    marks = [mark for mark in ticks(x.low, x.high, 5) if mark <= x.high]
    texts = []
    for mark in marks:
        near_end = x(mark) > _WIDTH - _RIGHT - 14
        anchor = "start" if mark == 0 else "end" if near_end else "middle"
        text = "step 0" if mark == 0 else _short(mark)
        texts.append(
            f'<text class="tick" x="{x(mark):.1f}" y="{_HEIGHT - 10}" text-anchor="{anchor}">{text}</text>'
        )
    return "".join(texts)


def _curve(line: Line, x: _Scale, y: _Scale) -> str:
    where = [f"{x(step):.1f},{y(value):.1f}" for step, value in line.points]
    kind = f"line {line.style}{' faint' if line.faint else ''}"
    drawn = f'<polyline class="{kind}" points="{" ".join(where)}"/>'
    if line.dots and len(where) <= 60:
        for place, (step, value) in zip(where, line.points, strict=True):
            across, down = place.split(",")
            said = escape(f"{line.label}: {metric_text(line.label, value)} at step {step:,.0f}")
            drawn += f'<circle class="dot {line.style}" cx="{across}" cy="{down}" r="3"><title>{said}</title></circle>'
    return drawn


def _legend(lines: Sequence[Line], name: str) -> str:
    named = [line for line in lines if not line.faint]
    entries = (
        f'<span><i class="swatch {line.style}"></i>{escape(line.label)} '
        f"<b>{metric_text(name, line.points[-1][1])}</b></span>"
        for line in named
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def _short(value: float) -> str:
    """A tick's number in few characters: 12k, 0.05, 1e-05."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.4g}"
