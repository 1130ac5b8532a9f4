"""What a run delivers: artifacts that were reloaded, scored and timed; the plan, the summary, the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..compression import Check, latency
from ..dataloading import load_source
from ..parallel.whole import gather
from .artifact import fill, load, record
from .assembly import whole_model
from .config import ExportConfig, RunConfig
from .data import held_out_loader
from .delivery_formats import save
from .metrics import Meter
from .models import BuiltModel
from .tasks import Task

if TYPE_CHECKING:
    from .loop import Trainer

FORMATS = ("safetensors", "packed")  # what every model can be delivered in


def deliver(
    trainer: Trainer, plan: list[dict[str, Any]], whole: Mapping[str, Any] | None, seconds: float
) -> Any:
    """Write artifacts, plan, summary and report on rank 0; the others hand over their parts and are done."""
    from .report import write_report
    from .summary import print_summary, write_summary

    config, assembly, mesh = trainer.config, trainer.assembly, trainer.mesh
    tensors = whole["model"] if whole is not None else gather(assembly.engine, mesh)
    if mesh.rank:
        return {}
    folder = config.run_folder
    (folder / "plan.json").write_text(json.dumps(plan, indent=1))
    built = whole_model(config, plan, trainer.data.facts)
    summary = {
        "steps": trainer.step,
        "wall_seconds": seconds,
        "samples_per_second": trainer.samples / max(seconds, 1e-9),
        "data_wait_fraction": trainer.wait_fraction,
        "mesh": mesh.degrees,
        "final_loss": trainer.logbook.final_loss,
        "metrics": trainer.results[-1]["metrics"],
        "params": counted(built.module, tensors),
        "techniques": [line for phase in trainer.results for line in phase["techniques"]],
        "artifacts": write_artifacts(
            config, built, tensors, plan, trainer.data.facts, config.export, assembly.task
        ),
        "phases": [
            {**phase, "techniques": [line["name"] for line in phase["techniques"]]}
            for phase in trainer.results
        ],
        "trackers": trainer.logbook.trackers.state,
        "layers": layer_sparsity(built.module, tensors),
    }
    write_summary(folder, summary)
    page = write_report(folder)
    print_summary(folder, page)
    return summary


def write_artifacts(
    config: RunConfig,
    built: BuiltModel,
    tensors: Mapping[str, Tensor],
    plan: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    exports: Sequence[ExportConfig],
    task: Task,
) -> list[dict[str, Any]]:
    """Write each format, load it back, score and time what was loaded.

    returns: lines for summary.json: format, path, bytes, dense_bytes (float32 bytes of the model as first built),
    ratio, metrics and latency of the reloaded model; of integer formats also how layers run and how near the outputs
    are to those of the training graph.
    raises: NoOpError where an integer format leaves a layer in float, or gives other outputs than the model.
    """
    dense = whole_model(config, [], facts)
    dense_bytes = sum(t.numel() * t.element_size() for t in dense.module.state_dict().values())
    stored = built.module.state_dict().keys()  # buffers that a model makes for itself are in no file
    tensors = {name: tensor for name, tensor in tensors.items() if name in stored}
    fill(built.module, tensors)
    lines = []
    for export in {export.format: export for export in exports}.values():
        folder = config.run_folder / "artifacts" / export.format
        integer = save(export, folder, config, built, tensors, plan, task)
        loaded = load(folder, trust_factory=True)
        metrics = score(config, loaded, task)
        timing = time_models(dense, loaded)
        size = record(folder, metrics=metrics, latency_ms=timing)
        lines.append(
            {
                **integer,
                "format": export.format,
                "path": str(folder.relative_to(config.run_folder)),
                "bytes": size,
                "dense_bytes": dense_bytes,
                "ratio": dense_bytes / size,
                "metrics": metrics,
                "latency_ms": timing,
            }
        )
    return lines


@torch.no_grad()
def score(config: RunConfig, module: nn.Module, task: Task) -> dict[str, float]:
    """Loss and metrics of a whole model in this process over all held-out rows."""
    source = load_source(config.data.spec(), "test")
    if source is None or not len(source):
        return {}
    meter = Meter(task, config.evaluate.metrics)
    loader = held_out_loader(config, source, config.evaluate.batch or max(config.data.batch, 256))
    module.eval()
    for batch in loader:
        x = task.inputs(batch.columns)
        meter.update(module(**x) if isinstance(x, dict) else module(x), batch.columns, batch.valid)
    loader.close()
    return meter.result()


def time_models(dense: BuiltModel, compressed: nn.Module) -> dict[str, Any]:
    """Latency of the dense and the reloaded model, taking turns in one measurement."""
    if dense.input_shape is None:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    note = latency.speed_note(dense.module, compressed, device)
    cases = latency.measure(
        {"dense": dense.module, "compressed": compressed},
        dense.example,
        rounds=20,
        seconds=0.5,
        device=device,
    )
    return latency.as_json(cases, device=device, note=note)


def technique_lines(checks: Mapping[str, Sequence[Check]]) -> list[dict[str, Any]]:
    """Requested against achieved of every technique of a phase."""
    return [
        {
            "name": scope.split(".", 1)[1],
            "requested": {c.quantity: c.requested for c in lines},
            "achieved": {c.quantity: c.achieved for c in lines},
            "holds": all(c.holds for c in lines),
        }
        for scope, lines in checks.items()
    ]


def removals(plan: Sequence[Mapping[str, Any]], phase: str) -> list[tuple[int, Mapping[str, Any]]]:
    """(place in the phase's list, record) of the techniques that took something out of the model at its end."""
    lines = [line for line in plan if line["phase"] == phase]
    return [(place, line["record"]) for place, line in enumerate(lines) if "removed" in line["record"]]


def with_removal(technique: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """A technique's line of the summary with the shares that were to go and that went."""
    checks = [Check(**check) for check in record["checks"]]
    line = {key: {**technique[key]} for key in ("requested", "achieved")}
    for check in checks:
        line["requested"][check.quantity], line["achieved"][check.quantity] = check.requested, check.achieved
    for what, (before, after) in record["removed"].items():
        line["achieved"].setdefault(f"{what.replace('_', '-')} removed", 1.0 - after / max(before, 1))
    return {**technique, **line, "holds": technique["holds"] and all(check.holds for check in checks)}


def counted(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Parameters in all, and those that are not zero."""
    names = [name for name, _ in module.named_parameters()]
    return {
        "total": sum(tensors[n].numel() for n in names),
        "nonzero": sum(int(tensors[n].count_nonzero()) for n in names),
    }


def layer_sparsity(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Name, shape and share of zeros of every matrix and filter."""
    return [
        {
            "name": name,
            "shape": list(tensors[name].shape),
            "sparsity": 1.0 - int(tensors[name].count_nonzero()) / max(tensors[name].numel(), 1),
        }
        for name, p in module.named_parameters()
        if p.ndim >= 2
    ]
