"""The report's tables: plain functions from the summary to HTML, "" where there is nothing to show."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .figures import holds, how_it_computes, metric_text, ratio_text, timed_artifacts
from .report_charts import bar
from .report_words import WORDS

Values = Mapping[str, Any]
_MOST_LAYERS = 40  # open in the table; the rest is folded


def smallest(summary: Values) -> Values | None:
    """The artifact with the fewest bytes."""
    return min(summary["artifacts"], key=lambda artifact: artifact["bytes"], default=None)


def techniques_section(summary: Values) -> str:
    """What was asked for and what was measured, one row per quantity."""
    if not summary["techniques"]:
        return ""
    rows = []
    for technique in summary["techniques"]:
        good = holds(technique)
        verdict = f'<span class="tag {"good" if good else "bad"}">{"holds" if good else "differs"}</span>'
        name = f"<code>{escape(technique['name'])}</code>"
        for quantity in dict.fromkeys([*technique["requested"], *technique["achieved"]]):
            pair = (
                metric_text(quantity, technique[side].get(quantity)) for side in ("requested", "achieved")
            )
            rows.append((name, escape(quantity.replace("_", " ")), *map(escape, pair), verdict))
            name = verdict = ""
    head = ("technique", "quantity", "requested", "achieved", "")
    explained = "Forgepress measures on the weights whether each technique did what the config asks for."
    return _section("Requested and achieved", explained, _table(head, rows, "techniques"))


def layers_section(summary: Values) -> str:
    """A bar per layer; many layers are folded."""
    layers = summary.get("layers", [])
    if not layers:
        return ""
    rows = [
        (
            f"<code>{escape(layer['name'])}</code>",
            " × ".join(f"{length:,}" for length in layer["shape"]),
            bar(layer["sparsity"]),
            metric_text("sparsity", layer["sparsity"]),
        )
        for layer in layers
    ]
    head = ("weight", "shape", "", "zeros")
    first = _table(head, rows[:_MOST_LAYERS], "layers")
    rest = rows[_MOST_LAYERS:]
    more = (
        f"<details><summary>{len(rest)} more layers</summary>{_table(head, rest, 'layers')}</details>"
        if rest
        else ""
    )
    return _section(
        "Layer by layer", "The share of each layer's weights that are exactly zero.", first + more
    )


def artifacts_section(summary: Values, metric: str | None) -> str:
    """Every exported folder."""
    if not summary["artifacts"]:
        return ""
    rows = [
        (
            f"<code>{escape(artifact['path'])}</code>",
            escape(artifact["format"]),
            f"{artifact['bytes']:,}",
            ratio_text(artifact["ratio"]),
            metric_text(metric or "", artifact["metrics"].get(metric)),
            metric_text("loss", artifact["metrics"].get("loss")),
        )
        for artifact in summary["artifacts"]
    ]
    dense = summary["artifacts"][0]["dense_bytes"]
    head = ("folder", "format", "bytes on disk", "smaller by", escape(metric or "metric"), "loss")
    explained = (
        f"Each was written, read back and evaluated again. Smaller by compares with {dense:,} bytes of dense weights. "
        "Load one with <code>forgepress.load(folder)</code>."
    )
    computing = [
        f"<p><code>{escape(artifact['format'])}</code>: {escape(said)}.</p>"
        for artifact in summary["artifacts"]
        if (said := how_it_computes(artifact))
    ]
    return _section("What to take away", explained, _table(head, rows) + "".join(computing))


def latency_section(summary: Values) -> str:
    """Measured times of every artifact that computes in its own way."""
    rows, latency = [], {}
    for artifact in timed_artifacts(summary):
        latency = artifact["latency_ms"]
        name = f"<code>{escape(artifact['format'])}</code>"
        for case, times in latency["cases"].items():
            cells = (_timing(times.get(model)) for model in ("dense", "compressed"))
            faster = f"{times['speed_up']:.2f} ×" if "speed_up" in times else "–"
            rows.append((name, escape(case), *cells, faster))
            name = ""
    if not rows:
        return ""
    head = ("artifact", "one forward pass", "dense, ms", "compressed, ms", "speed-up")
    device = escape(latency.get("device", "this device"))
    explained = f"Measured by turns on {device}: the median, and the range of four passes in five."
    return _section("Latency", explained, _table(head, rows))


def _timing(timing: Mapping[str, float] | None) -> str:
    if timing is None:
        return "–"
    return f"{timing['median']:.3g} <span class='quiet'>({timing['p10']:.3g} to {timing['p90']:.3g})</span>"


def phases_section(summary: Values) -> str:
    """One row per phase."""
    phases = summary.get("phases", [])
    if not phases:
        return ""
    names = list(dict.fromkeys(name for phase in phases for name in phase["metrics"]))
    rows = [
        (
            f"{number} {escape(phase['phase'])}",
            f"{phase['step']:,}",
            *(metric_text(name, phase["metrics"].get(name)) for name in names),
            ", ".join(f"<code>{escape(name)}</code>" for name in phase.get("techniques", ())) or "none",
        )
        for number, phase in enumerate(phases, 1)
    ]
    head = ("phase", "until step", *map(escape, names), "techniques")
    return _section("Phases", "The run's phases, each with the evaluation at its end.", _table(head, rows))


def words_section() -> str:
    """A folded glossary."""
    entries = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in WORDS.items())
    return f"<details><summary>What the words mean</summary><dl>{entries}</dl><p></p></details>"


def config_section(text: str) -> str:
    """The resolved config, folded."""
    if not text:
        return ""
    return f"<details><summary>The resolved config</summary><pre>{escape(text)}</pre></details>"


def _section(title: str, explained: str, content: str) -> str:
    return f'<section><h2>{title}</h2><p class="lead">{explained}</p>{content}</section>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], style: str = "") -> str:
    """A table from cells that are HTML already."""
    shape = ' class="shape"' if style == "layers" else ""
    heads = "".join(f"<th{shape if number == 1 else ''}>{cell}</th>" for number, cell in enumerate(head))
    lines = []
    for row in rows:
        cells = (f"<td{shape if number == 1 else ''}>{cell}</td>" for number, cell in enumerate(row))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table class="{style}"><tr>{heads}</tr>{"".join(lines)}</table></div>'
