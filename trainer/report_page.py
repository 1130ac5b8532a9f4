"""The page: sections from the result down to the config, each a plain function from values to HTML."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .figures import bytes_text, difference_text, holds, is_share, main_metric, metric_text, ratio_text
from .progress import duration
from .report_charts import Line, bar, line_chart
from .report_series import Curves, smoothed
from .report_style import STYLE
from .report_tables import (
    artifacts_section,
    config_section,
    latency_section,
    layers_section,
    phases_section,
    smallest,
    techniques_section,
    words_section,
)
from .report_words import comparison, headline

Values = Mapping[str, Any]


def render(name: str, summary: Values, curves: Curves, config: Values, config_text: str) -> str:
    """The whole page as text. It holds nothing but what is given, and refers to nothing outside."""
    best = ((config.get("evaluate") or {}).get("best") or {}).get("metric")
    metric = main_metric(summary, best)
    sections = [
        _header(name, summary, metric, config),
        _warnings(summary, curves),
        _facts(summary, config),
        _cards(summary, metric),
        _curves(curves, metric),
        techniques_section(summary),
        layers_section(summary),
        artifacts_section(summary, metric),
        latency_section(summary),
        phases_section(summary),
        words_section(),
        config_section(config_text),
        "<footer>Written by Forgepress from this run's metrics.jsonl, summary.json and config.yaml.</footer>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)} · Forgepress</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _header(name: str, summary: Values, metric: str | None, config: Values) -> str:
    model = config.get("model")
    model = (
        model
        if isinstance(model, str)
        else " ".join(str(value) for value in list((model or {}).values())[:1])
    )
    about = f'<span class="quiet">{escape(model)}</span>' if model else ""
    kept = all(holds(technique) for technique in summary["techniques"])
    tag = ""
    if summary["techniques"]:
        style, said = ("good", "all as requested") if kept else ("bad", "not as requested")
        tag = f'<span class="tag {style}">{said}</span>'
    return (
        f'<header><div class="brand"><h1>{escape(name)}</h1>{about}{tag}</div>'
        f'<p class="result">{headline(summary, smallest(summary), metric)}</p>'
        f'<p class="lead">{escape(comparison(summary, smallest(summary), metric))}</p></header>'
    )


def _warnings(summary: Values, curves: Curves) -> str:
    said = [
        f"{technique['name']} did not reach what was requested: see the table below."
        for technique in summary["techniques"]
        if not holds(technique)
    ]
    if curves.broken:
        steps = ", ".join(f"{step:,}" for step in curves.broken[:5])
        said.append(
            f"The loss was not a finite number at {len(curves.broken)} logged steps (first: {steps})."
        )
    return "".join(f'<p class="warning">{escape(text)}</p>' for text in said)


def _facts(summary: Values, config: Values) -> str:
    axes = " × ".join(f"{axis} {degree}" for axis, degree in summary["mesh"].items() if degree > 1)
    ranks = math.prod(summary["mesh"].values())
    facts = {
        "Steps": f"{summary['steps']:,}",
        "Samples a step": (config.get("data") or {}).get("batch", "–"),
        "Time": duration(summary["wall_seconds"]),
        "Samples a second": f"{summary['samples_per_second']:,.0f}",
        "Waiting for data": f"{summary['data_wait_fraction']:.1%}",
        "Processes": f"{ranks} ({axes})" if axes else "1",
        "Precision": config.get("precision", "–"),
    }
    rows = "".join(f"<div><dt>{key}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _cards(summary: Values, metric: str | None) -> str:
    artifact, dense = smallest(summary), summary.get("dense") or {}
    final = artifact["metrics"] if artifact else summary["metrics"]
    names = [name for name in (metric, "loss") if name]
    times = _times(artifact)
    cards = []
    if artifact or dense:
        size = bytes_text(artifact["dense_bytes"]) if artifact else "not exported"
        rows = [(name, metric_text(name, dense.get("metrics", {}).get(name)), "") for name in names]
        rows += [(f"one pass, {case}", f"{timing['dense']:.3g} ms", "") for case, timing in times.items()]
        rows += [("parameters", f"{summary['params']['total']:,}", "")] if not _cut(summary, artifact) else []
        said = "dense, uncompressed" + (
            f" · phase {dense['phase']}" if dense else " · not trained in this run"
        )
        cards.append(_card("dense", "Dense model", said, size, bar(1.0, "dense"), rows))
    size = bytes_text(artifact["bytes"]) if artifact else "not exported"
    rows = []
    for name in names:
        value, base = final.get(name), dense.get("metrics", {}).get(name)
        change = difference_text(name, value, base) if value is not None and base is not None else ""
        rows.append((name, metric_text(name, value), change))
    for case, timing in times.items():
        rows.append(
            (f"one pass, {case}", f"{timing['compressed']:.3g} ms", f"{timing['speed_up']:.2f} × as fast")
        )
    params = summary["params"]
    rows.append(("weights that are not zero", f"{params['nonzero']:,}", f"of {params['total']:,}"))
    said = f"as read back from {artifact['path']}" if artifact else "in memory at the end of the run"
    share = bar(artifact["bytes"] / artifact["dense_bytes"]) if artifact else ""
    ratio = f'<span class="tag">{ratio_text(artifact["ratio"])} smaller</span>' if artifact else ""
    cards.append(_card("small-model", f"Compressed model {ratio}", said, size, share, rows))
    note = ((artifact or {}).get("latency_ms") or {}).get("note", "")
    return f'<section class="pair">{"".join(cards)}</section>' + (
        f'<p class="quiet">About speed: {escape(note)}.</p>' if note else ""
    )


def _card(
    style: str, title: str, said: str, size: str, share: str, rows: Iterable[tuple[str, str, str]]
) -> str:
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}{f'<small>{escape(extra)}</small>' if extra else ''}</dd>"
        for name, value, extra in rows
    )
    return (
        f'<article class="card {style}"><h3>{title}</h3><div class="size">{escape(size)}</div>{share}'
        f'<div class="small">{escape(said)}</div><dl>{lines}</dl></article>'
    )


def _times(artifact: Values | None) -> dict[str, dict[str, float]]:
    """Case → medians, of the first two cases where both models were measured."""
    cases = ((artifact or {}).get("latency_ms") or {}).get("cases", {})
    return {
        name: {
            "dense": case["dense"]["median"],
            "compressed": case["compressed"]["median"],
            "speed_up": case["speed_up"],
        }
        for name, case in list(cases.items())[:2]
        if "speed_up" in case
    }


def _cut(summary: Values, artifact: Values | None) -> bool:
    """Whether the final model has fewer parameters than the dense one, whose count is then not in the summary."""
    return artifact is not None and artifact["dense_bytes"] > 4.2 * summary["params"]["total"]


def _curves(curves: Curves, metric: str | None) -> str:
    train, held_out = curves.train, curves.evaluate
    noisy = train.get("loss", [])
    charts = [
        line_chart(
            [
                Line(label="training", points=noisy, style="cold", faint=True),
                Line(label="training, smoothed", points=smoothed(noisy), style="cold"),
                Line(label="held-out samples", points=held_out.get("loss", []), style="hot", dots=True),
            ],
            curves.bands,
            name="loss",
            title="Loss",
        )
    ]
    for name in sorted(held_out, key=lambda name: name != metric):
        if name != "loss" and "/" not in name:
            line = Line(label="held-out samples", points=held_out[name], style="hot", dots=True)
            charts.append(_chart(name, [line], curves))
    charts.append(_sparsity(curves))
    for name, title in _FURTHER.items():
        charts.append(
            _chart(
                name, [Line(label=title.lower(), points=train.get(name, []), style="third")], curves, title
            )
        )
    drawn = [chart for chart in charts if chart]
    if not drawn:
        return ""
    explained = "Shaded stretches are the phases of the run. Held-out samples are never trained on."
    content = f'<div class="charts">{"".join(drawn)}</div>'
    return f'<section><h2>How it went</h2><p class="lead">{explained}</p>{content}</section>'


_FURTHER = {
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm",
    "samples_per_second": "Samples per second",
}


def _chart(name: str, lines: Sequence[Line], curves: Curves, title: str | None = None) -> str:
    percent = is_share(name)
    return line_chart(
        lines, curves.bands, name=name, title=title or name.replace("_", " ").capitalize(), percent=percent
    )


def _sparsity(curves: Curves) -> str:
    """Every achieved sparsity that was logged, one curve per technique."""
    found: dict[str, Any] = {}
    for source in (curves.evaluate, curves.train):  # training lines are closer together and win
        found |= {name: points for name, points in source.items() if name.split("/")[-1] == "sparsity"}
    styles = ("hot", "cold", "third")
    lines = [
        Line(
            label=name.split("/")[0].split(".")[-1].replace("_", " "), points=points, style=styles[number % 3]
        )
        for number, (name, points) in enumerate(found.items())
    ]
    return _chart("sparsity", lines, curves, "Sparsity: weights that are zero")
