"""What a sweep or some runs gave: a table, the points that no other beats, a plot of them, differences of configs."""

import csv
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..trainer.summary import read_config, read_summary

Line = Mapping[str, Any]
_LESS_IS_BETTER = ("bytes", "loss", "perplexity", "error", "latency", "seconds")


def text_table(lines: Sequence[Line]) -> str:
    """Aligned columns in the order in which keys first appear."""
    keys = list(dict.fromkeys(key for line in lines for key in line))
    rows = [keys, *([_shown(line.get(key)) for key in keys] for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(keys))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def less_is_better(metric: str) -> bool:
    """By its name: bytes, losses, perplexities, errors, latencies and times."""
    return any(word in metric for word in _LESS_IS_BETTER)


def pareto(lines: Sequence[Line], metrics: Sequence[str]) -> list[int]:
    """Places of the lines that no other line beats: as good in every metric and better in one."""
    points = {
        place: [float(line[m]) * (1 if less_is_better(m) else -1) for m in metrics]
        for place, line in enumerate(lines)
        if all(isinstance(line.get(m), int | float) for m in metrics)
    }

    def beaten(mine: list[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other in points.values()
        )

    return [place for place, values in points.items() if not beaten(values)]


def plot(lines: Sequence[Line], across: str, up: str, best: Sequence[int]) -> str:
    """An SVG: a dot for each line that has both metrics, named by its point; those of `best` are filled and joined."""
    width, height, edge = 640, 400, 60
    known = [place for place, line in enumerate(lines) if {across, up} <= line.keys()]
    columns = {m: [float(lines[place][m]) for place in known] or [0.0] for m in (across, up)}

    def place_of(metric: str, value: float, low: float, high: float) -> float:
        least, most = min(columns[metric]), max(columns[metric])
        return low + (high - low) * ((value - least) / (most - least) if most > least else 0.5)

    def where(place: int) -> tuple[float, float]:
        line = lines[place]
        x = place_of(across, float(line[across]), edge, width - edge)
        return x, place_of(up, float(line[up]), height - edge, edge)

    front = sorted(where(place) for place in best if place in known)
    marks = [
        f'<polyline fill="none" stroke="#888" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in front)}"/>'
    ]
    for place in known:
        x, y = where(place)
        fill = "#c40" if place in best else "#fff"
        settings = "\n".join(f"{key}: {_shown(value)}" for key, value in lines[place].items())
        name = html.escape(str(lines[place].get("point", place)))
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="#c40"><title>{html.escape(settings)}'
            f'</title></circle><text x="{x + 8:.1f}" y="{y - 6:.1f}">{name}</text>'
        )
    ends = {m: (_shown(min(values)), _shown(max(values))) for m, values in columns.items()}
    marks += [
        f'<text x="{edge}" y="{height - 20}">{html.escape(across)}: {ends[across][0]} to {ends[across][1]}</text>',
        f'<text x="10" y="20">{html.escape(up)}: {ends[up][0]} to {ends[up][1]}</text>',
    ]
    body = "\n".join(marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{width}" height="{height}" fill="#fff"/>\n{body}\n</svg>\n'
    )


def write_results(folder: Path, lines: Sequence[Line]) -> list[Path]:
    """results.csv, and pareto.svg where two metrics are known: quality up, bytes (else the second metric) across."""
    keys = list(dict.fromkeys(key for line in lines for key in line))
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(lines)
    pair = metrics_of(lines)
    if len(pair) < 2:
        return [folder / "results.csv"]
    (folder / "pareto.svg").write_text(plot(lines, pair[1], pair[0], pareto(lines, pair)))
    return [folder / "results.csv", folder / "pareto.svg"]


def metrics_of(lines: Sequence[Line]) -> list[str]:
    """The two metrics to weigh against each other: the first of the runs, and bytes or else the second."""
    after = [list(line)[list(line).index("state") + 1 :] for line in lines if "state" in line]
    known = list(dict.fromkeys(key for keys in after for key in keys))
    first = [key for key in known if key != "bytes"]
    return [*first[:1], *(["bytes"] if "bytes" in known else first[1:2])]


def compare(runs: Sequence[Path]) -> str:
    """Settings that differ between runs and their results, one column for each run. raises: ConfigError."""
    missing = [run for run in runs if not (run / "config.yaml").exists()]
    if missing:
        raise ConfigError(f"{missing[0]} is no run folder (it has no config.yaml)")
    configs = [dict(_flat(read_config(run))) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    lines: list[Line] = [
        {"": key, **{run.name: config.get(key, "–") for run, config in zip(runs, configs, strict=True)}}
        for key in keys
        if key != "name" and len({_shown(config.get(key, "–")) for config in configs}) > 1
    ]
    results = [_result(run) for run in runs]
    names = list(dict.fromkeys(name for result in results for name in result))
    lines += [
        {
            "": f"→ {name}",
            **{run.name: result.get(name, "–") for run, result in zip(runs, results, strict=True)},
        }
        for name in names
    ]
    return text_table(lines)


def _result(run: Path) -> dict[str, Any]:
    if not (run / "summary.json").exists():
        from .runs import read_run

        return {"state": read_run(run).state}
    summary = read_summary(run)
    sizes = {f"bytes ({artifact['format']})": artifact["bytes"] for artifact in summary["artifacts"]}
    return {
        "state": "finished",
        "steps": summary["steps"],
        "loss": summary["final_loss"],
        **summary["metrics"],
        **sizes,
    }


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    pairs = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    )
    if pairs is None or not value:
        return [(path, value)]
    return [leaf for key, inner in pairs for leaf in _flat(inner, f"{path}.{key}" if path else str(key))]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
