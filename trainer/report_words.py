"""The sentences of the report: the result in one line, and what its words mean."""

from collections.abc import Mapping
from html import escape
from typing import Any

from .figures import bytes_text, difference_text, metric_text, ratio_text

WORDS = {
    "dense": "The model before compression, every weight stored as it is.",
    "phase": "A stretch of the run with its own techniques: plain training, then pruning, then fine-tuning.",
    "sparsity": "The share of weights that are exactly zero. Zeros need almost no room in the packed file.",
    "loss": "What training makes small: the model's error on samples, averaged.",
    "held-out samples": "Samples that are never trained on. Only they tell how good the model is on new data.",
    "bytes on disk": "All files of the exported folder together, not an estimate.",
    "latency": "The time of one forward pass. Zeros alone seldom change it: devices multiply them like any number.",
    "percentage points": "98 % against 97 % is one point less.",
    "safetensors, packed": "Two formats of the same model: any tool reads the first, the second is the smallest.",
}


def headline(summary: Mapping[str, Any], artifact: Mapping[str, Any] | None, metric: str | None) -> str:
    """The result in a few words, as HTML."""
    value = _final(summary, artifact).get(metric) if metric else None
    if metric and value is not None:
        quality = f"{metric_text(metric, value)} {metric.replace('_', ' ')}"
    elif summary["final_loss"] is not None:
        quality = f"a loss of {metric_text('loss', summary['final_loss'])}"
    else:
        quality = ""
    if artifact and artifact["ratio"] > 1.05:
        return f"<em>{_glued(ratio_text(artifact['ratio']))} smaller</em> with {_glued(quality or 'no evaluation')}"
    return f"Trained to {_glued(quality)}" if quality else "Trained, without an evaluation"


def comparison(summary: Mapping[str, Any], artifact: Mapping[str, Any] | None, metric: str | None) -> str:
    """What the headline compares with, in one or two plain sentences; "" where there is nothing to compare."""
    said = []
    if artifact:
        before, after = bytes_text(artifact["dense_bytes"]), bytes_text(artifact["bytes"])
        said.append(f"{before} of dense weights became {after} on disk.")
    value = _final(summary, artifact).get(metric) if metric else None
    base = ((summary.get("dense") or {}).get("metrics") or {}).get(metric) if metric else None
    if metric and value is not None and base is not None:
        change = difference_text(metric, value, base)
        said.append(
            f"The dense model of this run reached {metric_text(metric, base)} {metric.replace('_', ' ')} before it was "
            f"compressed; the compressed one differs by {change}."
        )
    return " ".join(said)


def _final(summary: Mapping[str, Any], artifact: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return artifact["metrics"] if artifact else summary["metrics"]


def _glued(text: str) -> str:
    """`text` as HTML that is not broken between a number and its unit."""
    return escape(text).replace(" ", "\u00a0")
