"""Numbers as people read them, the same in the terminal and in the report."""

from collections.abc import Mapping
from typing import Any

_SHARES = ("accuracy", "sparsity", "fraction", "density", "share", "precision_score", "recall", "f1")


def is_share(name: str) -> bool:
    """Whether a quantity of this name lies between 0 and 1 and is read as percent."""
    return any(word in name.lower() for word in _SHARES)


def metric_text(name: str, value: Any) -> str:
    """A value of the quantity `name`: percent for shares, four digits for other numbers, – where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if is_share(name) and 0 <= value <= 1:
        return f"{value * 100:.2f} %"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def difference_text(name: str, value: float, base: float) -> str:
    """How far `value` lies from `base`, with a sign: in percentage points for shares."""
    change = value - base
    if is_share(name):
        return f"{change * 100:+.2f} points".replace("-", "−")
    return f"{change:+.3g}".replace("-", "−")


def bytes_text(count: float | None) -> str:
    """Bytes in the decimal units of disks: 512 B, 44.1 kB, 1.07 MB."""
    if count is None:
        return "–"
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    return f"{count:.3g} {unit}"


def ratio_text(ratio: float | None) -> str:
    """24.3 ×; – where there is none."""
    return "–" if not ratio else f"{ratio:.1f} ×" if ratio < 100 else f"{ratio:.0f} ×"


def main_metric(summary: Mapping[str, Any], best: str | None = None) -> str | None:
    """The metric that a result is judged by: `best` where it was measured, else accuracy, else the first but loss."""
    names = [name for name in summary.get("metrics", {}) if name != "loss"]
    for artifact in summary.get("artifacts", []):
        names += [name for name in artifact.get("metrics", {}) if name != "loss"]
    for wanted in (best, "accuracy"):
        if wanted in names:
            return wanted
    return names[0] if names else None


def holds(technique: Mapping[str, Any]) -> bool:
    """Whether every achieved quantity is the requested one, or more of it, within 2 %.

    A technique that has judged this itself ("holds") is believed: it knows its tolerance and direction.
    """
    if technique.get("holds") is not None:
        return technique["holds"]
    return all(
        _reached(wanted, technique["achieved"].get(name)) for name, wanted in technique["requested"].items()
    )


def _reached(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        return found >= wanted - 0.02 * abs(wanted)
    return found == wanted


def timed_artifacts(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The artifacts whose latency is worth a table: those that compute in integers, and one of the others, which all
    give the same model.
    """
    timed = [artifact for artifact in summary["artifacts"] if artifact["latency_ms"].get("cases")]
    alike = [artifact for artifact in timed if not artifact.get("arithmetic")]
    return [*alike[-1:], *(artifact for artifact in timed if artifact.get("arithmetic"))]


def how_it_computes(artifact: Mapping[str, Any]) -> str:
    """How many layers compute how, and how near the outputs are to the training graph's; "" for ordinary formats."""
    if not artifact.get("arithmetic"):
        return ""
    layers = "; ".join(f"{count} layers {kind}" for kind, count in artifact["arithmetic"].items())
    agreement = artifact.get("agreement") or {}
    if not agreement:
        return layers
    near, allowed = agreement["difference"], agreement["tolerance"]
    return f"{layers}; outputs within {near:.2%} of the training graph's ({allowed:.2%} allowed)"
