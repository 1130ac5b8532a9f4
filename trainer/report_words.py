"""The sentences of the report: the result in one line, and what its words mean."""

from collections.abc import Mapping
from html import escape
from typing import Any

from .figures import difference_text, metric_text, ratio_text

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
    """The result in one sentence, as HTML."""
    final = artifact["metrics"] if artifact else summary["metrics"]
    value = final.get(metric) if metric else None
    base = ((summary.get("dense") or {}).get("metrics") or {}).get(metric) if metric else None
    quality = ""
    if metric and value is not None:
        quality = f"{escape(metric_text(metric, value))} {escape(metric.replace('_', ' '))}"
        if base is not None:
            quality += f", {escape(difference_text(metric, value, base))} against dense"
    elif summary["final_loss"] is not None:
        quality = f"a loss of {metric_text('loss', summary['final_loss'])}"
    if artifact and artifact["ratio"] > 1.05:
        return f"<em>{ratio_text(artifact['ratio'])} smaller</em> with {quality or 'no evaluation'}"
    return f"Trained to {quality}" if quality else "Trained, without an evaluation"
