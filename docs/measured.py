"""What benchmarks have measured of each technique, for its section in techniques.md."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from forgepress.benchmarks.table import measured

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
# Technique → (file in benchmarks/results/, globs over its cases).
ROWS: dict[str, list[tuple[str, str]]] = {
    "distillation.attention": [("minilm_distillation", "*")],
    "distillation.features": [("minilm_distillation", "*")],
    "distillation.logits": [
        ("cifar_distillation", "*"),
        ("distillation_cost", "distillation.logits / by hand"),
        ("distillation_cost", "with cache / alone"),
        ("distillation_cost", "teacher on the fullest rank*"),
    ],
    "pruning.magnitude": [
        ("technique_overhead", "magnitude*"),
        ("technique_overhead", "torch.nn.utils.prune*"),
        ("exact_quantile", "*/*"),
    ],
    "pruning.network_slimming": [
        ("slimming_mlp", "*"),
        ("cifar_slimming", "*"),
        ("slimming_step_cost", "*slimming / without"),
        ("slimming_step_cost", "Torch-Pruning, scales / without"),
    ],
    "pruning.network_surgery": [
        ("surgery_lenet300", "*"),
        ("surgery_lenet5", "*"),
        ("technique_overhead", "surgery / without"),
        ("fused_passes", "splicing*"),
    ],
    "pruning.sparsity_penalty": [
        ("technique_overhead", "L1*"),
        ("technique_overhead", "group*"),
        ("slimming_step_cost", "group*"),
        ("slimming_step_cost", "Torch-Pruning, groups / without"),
    ],
    "pruning.structured": [("minilm_structured", "*")],
    "quantization.aware_training": [
        ("cifar_quantization", "*"),
        ("minilm_quantization", "*"),
        ("fused_passes", "*grid*"),
        ("qat_step_cost", "*/*"),
    ],
    "quantization.post_training": [("cifar_quantization", "*afterwards*"), ("minilm_int8_latency", "*")],
}


def section(technique: str) -> list[str]:
    """Markdown: a table of what was measured, nothing where nothing was."""
    lines: list[str] = []
    for name, pattern in ROWS.get(technique, []):
        file = RESULTS / f"{name}.json"
        result: dict[str, Any] = (
            json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": []}
        )
        cases = [row for row in result["rows"] if fnmatchcase(row["case"], pattern)]
        for row in cases:
            if not row["case"].endswith("processor time"):
                lines.append(f"| [{name}](../benchmarks/{name}.py) | {row['case']} | {measured(row)} |")
    return ["| Measured by | Case | Result |", "|---|---|---|", *lines, ""] if lines else []
