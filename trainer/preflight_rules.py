"""What cannot work together: mesh, batch, model, techniques, disk. Each rule adds problems with the key to mend."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

from torch import nn

from ..compression import Technique, refusals
from ..errors import ConfigError
from ..parallel import Mesh
from ..parallel.schedules import SCHEDULES, STAGES_PER_RANK
from ..parallel.split import module_costs
from ..parallel.tensor import cut_dim, gathered_of, open_after, resolve_plan
from .config import RunConfig, TechniqueConfig
from .config_errors import Path, Problem, keys_at, nearest
from .models import BuiltModel
from .preflight_engine import check_engine
from .support import support
from .tasks import task_for

Stages = tuple[tuple[str, ...], ...]
"""Module names of every pipeline stage, which live where `stages_of` says. (): one stage, the whole model."""


@dataclass
class Found:
    """What the rules have found so far."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, path: Path, message: str) -> None:
        """Add one thing to mend."""
        self.problems.append(Problem(path=path, message=message))

    def refused(self, path: Path, error: ConfigError) -> None:
        """Add what a lower package refuses, at the key that it names (parallel.microbatches=3: …), else at `path`."""
        named = re.match(r"(\w+(?:\.\w+)*)(?:=[^:]*)?: ", str(error))
        keys = tuple(named[1].split(".")) if named else ()
        inside = bool(keys) and keys[:1] == path[:1] and keys[-1] in keys_at(RunConfig, keys[:-1])
        self.problem(keys if inside else path, str(error))

    def note(self, text: str) -> None:
        """Add something that is allowed, but perhaps not meant."""
        self.notes.append(text)


def check_mesh(config: RunConfig, ranks: int, found: Found) -> None:
    """Engine, and the product of the degrees."""
    parallel = config.parallel
    check_engine(config, found.problem)
    if parallel.ranks != ranks:
        used = [f"{axis} {degree}" for axis, degree in parallel.degrees.items() if degree > 1] or [
            "one process"
        ]
        message = f"{' × '.join(used)} needs {_ranks(parallel.ranks)}, but there {_are(ranks)}"
        found.problem(("parallel",), f"{message}; change a degree or run with --ranks {parallel.ranks}")


def check_batch(config: RunConfig, rows: int | None, found: Found) -> None:
    """Every data rank needs a row in every micro-batch, and an epoch a batch."""
    batch, parallel = config.data.batch, config.parallel
    pieces = parallel.microbatches * parallel.data_ranks
    if batch < pieces:
        cut = f"{parallel.microbatches} micro-batches × {_ranks(parallel.data_ranks, 'data rank')}"
        message = f"given {batch}; {cut} need {pieces} samples or more: raise it, or lower microbatches"
        found.problem(("data", "batch"), message)
    held_out = config.evaluate.batch
    if held_out is not None and held_out < pieces:
        found.problem(("evaluate", "batch"), f"given {held_out}; want {pieces} or more, as for data.batch")
    if held_out is not None and parallel.pipeline > 1:
        found.note("evaluate.batch counts without a pipeline only; here held-out batches are data.batch rows")
    if rows is None:
        return
    if batch > rows and config.data.tail == "drop":
        message = (
            f"given {batch}, but there are {rows} rows and tail: drop leaves no batch; want {rows} or less"
        )
        found.problem(("data", "batch"), message)
    elif batch > rows:
        found.note(f"data.batch {batch} is more than the {rows} rows: every step is one whole epoch")
    tail = rows % batch
    if config.data.tail == "keep" and 0 < tail < pieces <= batch:
        found.note(
            f"the last batch of an epoch has {tail} rows for {pieces} pieces (micro-batches × data ranks): some "
            "ranks have none in it; data.tail: drop leaves it out"
        )


def check_tensor(config: RunConfig, built: BuiltModel, found: Found) -> dict[str, str]:
    """The model's (or the config's) tensor plan on this degree; returns module → column or row."""
    from .preflight_finer import check_finer

    parallel, layout = config.parallel, built.layout
    key = "tensor" if parallel.tensor_plan is None else "tensor_plan"
    if parallel.tensor_plan is not None:
        # The numbers that must be divisible belong to the model's own plan; with another one, features decide.
        layout = replace(layout, tensor_plan=dict(parallel.tensor_plan), divisible={})
    layout = check_finer(config, built, layout, found)
    if parallel.tensor == 1:
        return {}
    try:
        plan = resolve_plan(built.module, layout, parallel.tensor)
        if built.input_shape is not None:
            built.summed(plan, parallel.tensor, frozenset(gathered_of(built.module, layout, plan)))
        return plan
    except ConfigError as error:
        found.refused(("parallel", key), error)
    return {}


def check_pipeline(config: RunConfig, built: BuiltModel, plan: dict[str, str], found: Found) -> Stages:
    """The modules of each pipeline stage as the engine will cut them; () where it would refuse to, or has one."""
    parallel = config.parallel
    if parallel.pipeline == 1:
        return ()
    from ..parallel.pipeline import plan_stages, users_of

    layout = built.layout
    _check_interleaving(config, found)
    opened = open_after(built.module, layout.cuts, plan)
    try:
        stages = plan_stages(
            built.module,
            layout,
            Mesh(**parallel.degrees),  # pyright: ignore[reportArgumentType]
            schedule=parallel.schedule,
            microbatches=parallel.microbatches,
            stages=parallel.stages,
            costs=_costs(built) if layout.cuts else None,
            whole=[name for name in layout.cuts[:-1] if opened[name]],
        )
        users_of(built.module, layout, stages)
        return tuple(stages)
    except ConfigError as error:
        found.refused(("parallel", "pipeline"), error)
    return ()


def stages_per_rank(config: RunConfig) -> int:
    """How many parts of the model each pipeline rank holds: 1 or 2 by schedule, unless the config names stages."""
    parallel = config.parallel
    if parallel.pipeline == 1 or not SCHEDULES[parallel.schedule].several:
        return 1
    return max(len(parallel.stages) // parallel.pipeline, 1) if parallel.stages else STAGES_PER_RANK


def _costs(built: BuiltModel) -> list[float]:
    if not built.layout.order:
        return list(built.layout.links.costs) if built.layout.links is not None else []
    example = built.example(1, device="meta")[0] if built.input_shape is not None else None
    return module_costs(built.module, built.layout, example)


def _check_interleaving(config: RunConfig, found: Found) -> None:
    """With one stage a rank, interleaving is 1f1b under another name."""
    parallel = config.parallel
    if (
        SCHEDULES[parallel.schedule].several
        and parallel.stages
        and len(parallel.stages) < 2 * parallel.pipeline
    ):
        message = f"given {len(parallel.stages)} stages; {parallel.schedule} wants two or more on each rank"
        wanted = f"{2 * parallel.pipeline}, {3 * parallel.pipeline}, … of them, or schedule: 1f1b"
        found.problem(("parallel", "stages"), f"{message}: {wanted}")


def check_metrics(config: RunConfig, task: str, found: Found) -> None:
    """The best evaluation is chosen by a metric that is measured."""
    best = config.evaluate.best
    try:
        measured = config.evaluate.metrics or task_for(task).metrics
    except ConfigError as error:
        found.problem(("model",), str(error))
        return
    if best is not None and best.metric not in (*measured, "loss"):
        message = f"given {best.metric!r}, which is not measured{nearest(best.metric, (*measured, 'loss'))}"
        found.problem(("evaluate", "best", "metric"), message)


def check_techniques(
    config: RunConfig,
    built: BuiltModel,
    plan: dict[str, str],
    found: Found,
    teach: Callable[[Any, int, Path], Any],
) -> list[list[tuple[float, list[str]]]]:
    """Each technique must match something of the model that its phase begins with, and be able to deliver.

    plan: module → column or row, what the tensor axis divides.
    teach: of a technique with a teacher, its phase's number and its place, the technique that knows both models;
        None where they do not go together.
    returns: per phase, per technique: (bytes a weight, names of the parameters). The model is prepared (on shapes
    alone) on the way; where a technique cannot do that without numbers, what comes after it is not checked.
    """
    module = built.module
    phases: list[list[tuple[float, list[str]]]] = []
    together: list[list[tuple[Technique, frozenset[str]]]] = []
    known = True
    for index, phase in enumerate(config.phases):
        phases.append([])
        together.append([])
        for number, entry in enumerate(phase.techniques):
            path: Path = ("phases", index, "techniques", number)
            technique = entry.build()
            if reason := support().refusal(entry.name, config.parallel.model_dump(exclude_none=True)):
                found.problem(path, reason)
            if technique.needs_teacher and known:
                technique = teach(technique, index, path) or technique
            names = technique.matched(module)
            if not names and known:
                found.problem(path, _nothing_matched(entry, technique.match, module))
            phases[-1].append((technique.bytes_per_weight, names))
            together[-1].append((technique, frozenset(names)))
            if technique.traces and names and known:
                _check_removal(config, built, plan, path, technique, found)
            if technique.changes_model and known:
                try:
                    technique.prepare(module)
                except (NotImplementedError, RuntimeError) as error:
                    known = False
                    found.note(
                        f"{entry.name} needs numbers to prepare ({error}): matches after it are not checked"
                    )
    for refusal in refusals(together):
        found.problem(("phases", refusal.phase, "techniques", refusal.technique), refusal.message)
    return phases


def _check_removal(
    config: RunConfig, built: BuiltModel, plan: dict[str, str], path: Path, technique: Technique, found: Found
) -> None:
    """What is to be removed can be, and leaves widths that the tensor axis divides."""
    try:
        widths = technique.foretell(built.module, built.example(1, device="meta"))
    except ConfigError as error:
        found.problem(path, str(error))
        return
    degree = config.parallel.tensor
    for name, cut in plan.items():
        multiple = widths.get(f"{name}.weight", {}).get(cut_dim(built.module.get_submodule(name), cut))
        if multiple is not None and multiple % degree:
            found.problem(
                path,
                f"widths of {name} will be multiples of {multiple}, which tensor: {degree} does not divide; want "
                f"multiple (for attention heads heads_multiple) {math.lcm(multiple, degree)}, or another tensor degree",
            )
            return


def _nothing_matched(entry: TechniqueConfig, match: str | tuple[str, ...], module: nn.Module) -> str:
    names = [name for name, _ in module.named_parameters()]
    shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
    return f"{entry.name} matches no parameter with match: {match}; the model has {shown or 'none'}"


def check_room(config: RunConfig, checkpoint: int, found: Found) -> None:
    """The run's folder can be written and holds the checkpoints that are kept, and one while it is written."""
    folder = config.run_folder
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        found.problem(("checkpoint", "folder"), f"{folder} cannot be written: {parent} is {_why(parent)}")
        return
    copies = config.checkpoint.keep + config.checkpoint.keep_best + 1
    free = shutil.disk_usage(parent).free
    if copies * checkpoint > free:
        wanted = f"{copies} checkpoints of {in_bytes(checkpoint)}, {in_bytes(copies * checkpoint)} in all"
        message = f"given {folder}, for up to {wanted}, but it"
        found.problem(
            ("checkpoint", "folder"), f"{message} has {in_bytes(free)} free; keep fewer, or use another disk"
        )


def _why(parent: FilePath) -> str:
    return "a folder without write permission" if parent.is_dir() else "a file"


def in_bytes(count: float) -> str:
    """A number of bytes with its unit: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _ranks(count: int, what: str = "rank") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"
