"""`forgepress check`: what a run would refuse, need and waste, said before anything is started or allocated.

The model is built on the meta device; no GPU, no process group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..dataloading import Source
from ..errors import ConfigError, ForgepressError
from ..parallel import schedules
from .config import RunConfig
from .config_errors import config_error
from .config_file import Origins
from .models import BuiltModel
from .precision import emulated
from .preflight_activations import working_bytes
from .preflight_context import check_context
from .preflight_export import check_export
from .preflight_levers import check_levers, check_levers_on
from .preflight_memory import (
    Held,
    MemoryRow,
    activation_bytes,
    checkpoint_bytes,
    estimate,
    held_by_fullest_rank,
    keeps_whole_gradients,
)
from .preflight_report import PhasePlan, Report, print_report
from .preflight_rules import (
    Found,
    check_batch,
    check_mesh,
    check_metrics,
    check_pipeline,
    check_room,
    check_techniques,
    check_tensor,
    stages_per_rank,
)
from .preflight_teacher import Classroom
from .preflight_traffic import TrafficRow, traffic

__all__ = ["PhasePlan", "Report", "bubble", "check", "examine", "print_report", "refuse"]

LoadSource = Callable[..., Source]
BuildModel = Callable[..., BuiltModel]


def check(
    config: RunConfig,
    ranks: int,
    *,
    origins: Origins | None = None,
    load_source: LoadSource | None = None,
    build_model: BuildModel | None = None,
) -> Report:
    """`examine`, and refuse: the report of a run that can start.

    raises: ConfigError with all problems on one screen.
    """
    report = examine(config, ranks, origins=origins, load_source=load_source, build_model=build_model)
    if report.problems:
        count = "1 rank" if ranks == 1 else f"{ranks} ranks"
        raise config_error(report.problems, f"{config.name} cannot run on {count}: it")
    return report


def examine(
    config: RunConfig,
    ranks: int,
    *,
    origins: Origins | None = None,
    load_source: LoadSource | None = None,
    build_model: BuildModel | None = None,
) -> Report:
    """Everything that can be known of `config` on `ranks` ranks beforehand; problems are listed, not raised.

    origins: where keys were written, for file and line in problems (from `load_with_origins`).
    load_source, build_model: those of dataloading and trainer.models, unless given.
    cost: opens the data as a run would; one forward of one micro-batch on shapes alone.
    """
    config, found = config.on(ranks), Found()
    check_mesh(config, ranks, found)
    source = _source(config, load_source, found)
    rows = None if source is None else _rows(config, source)
    check_batch(config, rows, found)
    check_levers(config, found)
    if slow := emulated(config):
        found.note(slow)
    report = Report(
        name=config.name,
        ranks=ranks,
        mesh=config.parallel.degrees,
        rows=rows,
        columns={} if source is None else _columns(source),
        batches_per_epoch=None if rows is None else batches_per_epoch(config, rows),
        pipeline_bubble=bubble(config),
    )
    built = _model(config, source, build_model, found)
    if built is not None:
        report = _with_model(report, config, built, source, found)
    else:
        check_export(config, None, found)
        check_room(config, 0, found)
    place = origins.place if origins is not None else lambda path: ""
    problems = tuple(replace(problem, place=place(problem.path)) for problem in found.problems)
    return replace(report, problems=problems, notes=tuple(found.notes))


def refuse(config: RunConfig, ranks: int, source: Source) -> None:
    """What `check` refuses, without its estimates: a run calls it on every rank before it touches anything.

    source: the training data, opened already.
    raises: ConfigError with all problems, the same on every rank.   cost: the model on the meta device.
    """
    found = Found()
    check_mesh(config, ranks, found)
    check_batch(config, _rows(config, source), found)
    check_levers(config, found)
    built = _model(config, source, None, found)
    if built is not None:
        check_metrics(config, built.task, found)
        check_levers_on(built, config, found)
        check_context(config, built, found)
        plan = check_tensor(config, built, found)
        check_pipeline(config, built, plan, found)
        classroom = Classroom(config, built, source, found)
        check_techniques(config, built, plan, found, classroom)  # prepares the model: nothing else may follow
    check_export(config, None if built is None else built.module, found)
    if found.problems:
        raise config_error(found.problems, f"{config.name} cannot run: it")


def bubble(config: RunConfig) -> float:
    """Share of a step's time in which a pipeline rank waits, by the theory of its schedule."""
    parallel = config.parallel
    return schedules.bubble(
        parallel.schedule, parallel.pipeline, parallel.microbatches, stages_per_rank(config)
    )


def batches_per_epoch(config: RunConfig, rows: int) -> int:
    """Optimizer steps of one epoch of `rows` rows."""
    batch = config.data.batch
    return rows // batch if config.data.tail == "drop" else math.ceil(rows / batch)


def _source(config: RunConfig, load_source: LoadSource | None, found: Found) -> Source | None:
    if load_source is None:
        from ..dataloading import load_source
    try:
        return load_source(config.data.spec(), "train")
    except ForgepressError as error:
        found.problem(("data", "source"), str(error))
    return None


def _rows(config: RunConfig, source: Source) -> int:
    """Rows of an epoch; of packed ones about as many as their tokens fill."""
    if config.data.pack is None:
        return len(source)
    return max(-(-int(source.lengths.sum()) // config.data.pack.length), 1)  # type: ignore[attr-defined]


def _model(
    config: RunConfig, source: Source | None, build_model: BuildModel | None, found: Found
) -> BuiltModel | None:
    from ..dataloading import facts

    if build_model is None:
        from .models import build_model
    try:
        known = facts(source) if source is not None else {}
        built = build_model(config.model, seed=config.seed, device="meta", data=known)
        return built.cuttable() if config.parallel.pipeline > 1 else built
    except ForgepressError as error:
        if source is not None:
            found.problem(("model",), str(error))
        else:
            found.note(f"the model was not checked, its sizes may come from the data: {error}")
    return None


def _columns(source: Source) -> dict[str, str]:
    return {
        name: f"{str(info.dtype).removeprefix('torch.')} {list(info.shape)}"
        for name, info in source.columns.items()
    }


def _with_model(
    report: Report, config: RunConfig, built: BuiltModel, source: Source | None, found: Found
) -> Report:
    check_metrics(config, built.task, found)
    check_levers_on(built, config, found)
    check_context(config, built, found)
    plan = check_tensor(config, built, found)
    stages = check_pipeline(config, built, plan, found)
    held = held_by_fullest_rank(config, built, plan, stages)
    parameters = sum(parameter.numel() for parameter in built.module.parameters())
    rows = math.ceil(config.data.batch / (config.parallel.microbatches * config.parallel.data_ranks))
    activations = _activations(config, built, rows, source, found)
    sent = _traffic(config, built, held, plan, stages, rows, found)
    classroom = Classroom(config, built, source, found)
    matches = check_techniques(
        config, built, plan, found, classroom
    )  # prepares the model: nothing else may follow
    check_export(config, built.module, found)
    size = checkpoint_bytes(config, built.module, matches)
    check_room(config, size, found)
    plans = _plans(config, report.batches_per_epoch, [[len(names) for _, names in each] for each in matches])
    _note_warmup(config, plans, found)
    return replace(
        report,
        parameters=parameters,
        stages=stages,
        phases=plans,
        memory=(*_memory(config, built, held, matches, activations, found), *classroom.memory),
        traffic=sent,
        checkpoint_bytes=size,
    )


def _activations(
    config: RunConfig, built: BuiltModel, rows: int, source: Source | None, found: Found
) -> int | None:
    parallel = config.parallel
    try:
        if parallel.pipeline == 1:
            again = parallel.microbatches > 1
            kept = 1.0 if again and keeps_whole_gradients(config) else 1.0 / parallel.weight_pieces
            whole = working_bytes(config, built, rows, source, kept=kept, again=again)
        else:
            whole = activation_bytes(built, rows, recompute=parallel.recompute)
        return math.ceil(whole / parallel.context)
    except Exception as error:  # whatever a model does on shapes alone: the other numbers still hold
        found.note(f"activations are not in the table, the model does not run on shapes alone: {error}")
    return None


def _memory(
    config: RunConfig, built: BuiltModel, held: Held, matches: Any, activations: int | None, found: Found
) -> tuple[MemoryRow, ...]:
    try:
        return tuple(estimate(config, built, held, matches, activations))
    except (
        ConfigError
    ) as error:  # settings of an engine that contradict the run are refused by name elsewhere
        found.note(f"memory is not in the table: {error}")
    return ()


def _traffic(
    config: RunConfig,
    built: BuiltModel,
    held: Held,
    plan: dict[str, str],
    stages: tuple[tuple[str, ...], ...],
    rows: int,
    found: Found,
) -> tuple[TrafficRow, ...]:
    try:
        return traffic(config, built, held, plan, stages, rows)
    except Exception as error:  # as above, and whatever is refused elsewhere
        found.note(f"bytes sent in a step are not in the table: {error}")
    return ()


def _plans(config: RunConfig, batches: int | None, counts: list[list[int]]) -> tuple[PhasePlan, ...]:
    plans = []
    for phase, matched in zip(config.phases, counts, strict=True):
        steps = phase.steps
        if steps is None and phase.epochs is not None and batches is not None:
            steps = phase.epochs * batches
        names = [technique.name for technique in phase.techniques]
        plans.append(
            PhasePlan(name=phase.name, steps=steps, techniques=tuple(zip(names, matched, strict=True)))
        )
    return tuple(plans)


def _note_warmup(config: RunConfig, plans: tuple[PhasePlan, ...], found: Found) -> None:
    for phase, plan in zip(config.phases, plans, strict=True):
        warmup: Any = config.optimizer_of(phase).schedule.warmup
        if plan.steps and warmup >= plan.steps:
            found.note(
                f"phase {plan.name} ends after {plan.steps} steps, before its warmup of {warmup} steps does"
            )
