"""`forgepress export`: the artifacts of a run or of one of its checkpoints, made in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from torch import Tensor

from ..compression.replay import PlanEntry
from ..errors import CheckpointError, ConfigError
from ..parallel import Mesh
from ..parallel.whole import gather
from .assembly import Assembly, Facts, assemble, whole_model
from .boundary import finalize
from .checkpoint import Checkpoints, Saved, open_saved
from .checkpoint_files import damage
from .config import ExportConfig, ParallelConfig, RunConfig
from .data import open_data
from .delivery import FORMATS, write_artifacts
from .delivery_formats import what_is_missing
from .models import BuiltModel


def export(path: str | Path, formats: Sequence[str] | None = None) -> list[Path]:
    """Write the artifacts of a run folder (its newest whole checkpoint) or of ``checkpoints/step-N``.

    formats: ``safetensors``, ``packed``, ``onnx``, ``torch_int8``, with their settings in the run's config if it has
        them; None: those of the run's config, or the first two where it names none.
    returns: the artifact folders.
    raises:  CheckpointError where there is no whole checkpoint, ConfigError for an unknown format or one whose
        libraries are not installed; NoOpError where an integer format leaves a layer in float.
    """
    given, run_folder = _folders(path)
    chosen = _chosen(_alone(run_folder), formats)
    final = final_tensors(given)
    lines = write_artifacts(
        final.config, final.built, final.tensors, final.plan, final.facts, chosen, final.assembly.task
    )
    return [run_folder / line["path"] for line in lines]


@dataclass(frozen=True, kw_only=True)
class Final:
    """The model of a checkpoint as the end of its phase would leave it, whole, in one process."""

    config: RunConfig
    assembly: Assembly
    built: BuiltModel
    plan: list[PlanEntry]
    tensors: Mapping[str, Tensor]
    facts: Facts


def final_tensors(path: str | Path) -> Final:
    """Restore a run folder's newest whole checkpoint, or ``checkpoints/step-N``, and finalize its phase.

    raises: CheckpointError where there is no whole checkpoint.
    """
    given, run_folder = _folders(path)
    config, mesh = _alone(run_folder), Mesh()
    saved = _one(given) if given != run_folder else _newest(run_folder, mesh)
    data = open_data(config, mesh)
    index = saved.state["phase"]
    phase = config.phases[index]
    steps = phase.steps if phase.steps is not None else (phase.epochs or 0) * len(data.train)
    assembly = assemble(
        config, phase, saved.state["plan"], mesh, data.facts, steps=steps, items_per_row=data.items_per_row
    )
    Checkpoints(run_folder / "checkpoints", mesh, keep=1, asynchronous=False).restore(saved, assembly)
    plan, whole = finalize(assembly, config, mesh, data.facts, with_moments=False)
    tensors = whole["model"] if whole is not None else gather(assembly.engine, mesh)
    built = whole_model(config, plan, data.facts)
    data.close()
    return Final(config=config, assembly=assembly, built=built, plan=plan, tensors=tensors, facts=data.facts)


def _folders(path: str | Path) -> tuple[Path, Path]:
    """What was given, and the run's folder that it is or lies in."""
    given = Path(path).resolve()
    return given, given.parent.parent if given.parent.name == "checkpoints" else given


def _chosen(config: RunConfig, formats: Sequence[str] | None) -> list[ExportConfig]:
    """The exports asked for. raises: ConfigError."""
    known = {export.format: export for export in config.export}
    names = list(formats or known or FORMATS)
    wanted = get_args(ExportConfig.model_fields["format"].annotation)
    if unknown := [name for name in names if name not in wanted]:
        raise ConfigError(f"--format {unknown[0]}: unknown; want one of {', '.join(wanted)}")
    chosen = [known.get(name) or ExportConfig(format=name) for name in names]  # pyright: ignore[reportArgumentType]
    if missing := next(filter(None, (what_is_missing(export.format) for export in chosen)), None):
        raise ConfigError(missing)
    return chosen


def _alone(run_folder: Path) -> RunConfig:
    """The run's config on one process, with its folder where it lies now."""
    file = run_folder / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{run_folder} holds no config.yaml; want a run folder or a checkpoint in one")
    values = RunConfig.load(file).model_dump(mode="json")
    values["name"] = run_folder.name
    values["checkpoint"]["folder"] = str(run_folder.parent)
    parallel = RunConfig.load(file).parallel
    values["parallel"] = ParallelConfig(microbatches=parallel.microbatches).model_dump(mode="json")
    return RunConfig.model_validate(values)


def _newest(run_folder: Path, mesh: Mesh) -> Saved:
    saved, notes = Checkpoints(run_folder / "checkpoints", mesh, keep=1, asynchronous=False).newest()
    if saved is None:
        raise CheckpointError(
            "\n".join(
                [*notes, f"{run_folder} has no whole checkpoint; train the run first (forgepress train)"]
            )
        )
    return saved


def _one(folder: Path) -> Saved:
    trouble = damage(folder)
    if trouble is not None:
        raise CheckpointError(f"checkpoint {folder} is damaged ({trouble}); take another one, or train again")
    return open_saved(folder)
