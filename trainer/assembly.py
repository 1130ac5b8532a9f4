"""One phase's model on the mesh, with its optimizer and its techniques."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..compression import (
    Chain,
    Run,
    Technique,
    Weight,
    name_of,
    replay,
)
from ..compression.keep import between_keepers
from ..compression.replay import PlanEntry
from ..compression.run import Piece
from ..errors import ConfigError
from ..parallel import AXES, Engine, Layout, Mesh
from ..parallel.context import piece_of
from ..parallel.engine import Inputs
from ..parallel.features import whole_features
from ..parallel.whole import scatter
from .config import PhaseConfig, RunConfig
from .engines import make_engine, views_of
from .gradients import PARTS
from .models import BuiltModel, build_model
from .moving import Moving
from .optimizers import build_optimizer
from .sequences import inputs_on
from .tasks import Task, task_for
from .teacher import Teachers
from .teacher_fit import fit

SAME_STAGE = tuple(axis for axis in AXES if axis != "pipeline")
Facts = Mapping[str, Any]
"""What the data says about itself: input_shape, classes, vocabulary, length."""


@dataclass(kw_only=True)
class Assembly:
    """All that one phase trains with. Made by `assemble`."""

    phase: PhaseConfig
    built: BuiltModel
    engine: Engine
    weights: list[Weight]
    optimizer: torch.optim.Optimizer
    chain: Chain
    task: Task
    inputs: Inputs
    plan: list[PlanEntry]
    names: list[str]  # all parameters of the whole model, in its order
    moving: Moving | None = None
    """Where the engine moves the weights itself."""

    def moments(self) -> dict[str, tuple[Weight, Tensor]]:
        """Optimizer state shaped like its weight: ``name/key`` → (weight, local tensor). Collective."""
        if self.engine.masters is not None:
            by_name = {w.name: w for w in self.weights}
            states = self.engine.masters.states()
            return {key: (by_name[key.rsplit("/", 1)[0]], state) for key, state in states.items()}
        return {
            f"{w.name}/{key}": (w, value)
            for w in self.weights
            for key, value in self.optimizer.state.get(w.tensor, {}).items()
            if isinstance(value, Tensor) and value.shape == w.tensor.shape and key != "step"
        }

    def counts(self) -> dict[str, Tensor]:
        """Optimizer state that is one number per weight (Adam's step): ``name/key`` → 0-dim tensor."""
        if self.engine.masters is not None:
            return self.engine.masters.counts()
        return {
            f"{w.name}/{key}": value
            for w in self.weights
            for key, value in self.optimizer.state.get(w.tensor, {}).items()
            if isinstance(value, Tensor) and (key == "step" or value.shape != w.tensor.shape)
        }


def whole_model(
    config: RunConfig, plan: Sequence[PlanEntry], facts: Facts, device: str = "cpu"
) -> BuiltModel:
    """A fresh whole model in the shape that ``plan`` gave it; its weights are those of the seed."""
    built = build_model(config.model, seed=config.seed, data=facts, device=device)
    replay(built.module, plan)
    return built


def prepared_model(
    config: RunConfig,
    plan: Sequence[PlanEntry],
    facts: Facts,
    techniques: Sequence[Technique],
    device: str = "cpu",
) -> BuiltModel:
    """As `whole_model`, in the shape in which a phase with these techniques trains it.

    device: "meta" for shapes alone; where a technique asks for numbers to prepare, they are made and dropped again.
    """
    built = whole_model(config, plan, facts, device)
    try:
        for technique in techniques:
            technique.prepare(built.module)
    except (NotImplementedError, RuntimeError):
        if device != "meta":
            raise
        built = prepared_model(config, plan, facts, techniques)
        built.module.to("meta")
    return built


def held(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as engines count them: tied ones once, buffers also that no file holds."""
    return {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def techniques_of(phase: PhaseConfig, plan: Sequence[PlanEntry]) -> list[Technique]:
    """The phase's techniques in list order, between those that keep what earlier phases have delivered."""
    return between_keepers([technique.build() for technique in phase.techniques], plan)


def techniques_for(
    config: RunConfig, phase: PhaseConfig, plan: Sequence[PlanEntry], facts: Facts
) -> list[Technique]:
    """As `techniques_of`; those that learn from a teacher know both models.

    raises: ConfigError where student and teacher do not go together.
    """
    return fit(techniques_of(phase, plan), partial(whole_model, config, plan, facts), config, facts)


def assemble(
    config: RunConfig,
    phase: PhaseConfig,
    plan: Sequence[PlanEntry],
    mesh: Mesh,
    facts: Facts,
    *,
    steps: int,
    items_per_row: int | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> Assembly:
    """Build the model, prepare it, spread it over the mesh and give it an optimizer and its techniques.

    steps: optimizer steps of the phase.   items_per_row: constant number of loss items a row, if the data has one.
    values: the prepared model's values by name, on rank 0, where somebody has them already (others give {}).
    raises: ConfigError where model, mesh and techniques do not go together.
    """
    techniques = techniques_for(config, phase, plan, facts)
    once = config.parallel.build_once and mesh.world > 1
    if once and mesh.rank == 0 and values is None:
        values = held(prepared_model(config, plan, facts, techniques).module)
    built = prepared_model(config, plan, facts, techniques, "meta" if once else "cpu")
    _refuse_idle(techniques, built.module, phase)
    names = [name for name, _ in built.module.named_parameters()]
    parallel = config.parallel
    built = built.cuttable() if mesh.pipeline > 1 else built
    layout = layout_of(built, config, plan)
    if mesh.tensor > 1:
        layout = with_sums(built, layout, mesh.tensor)
    engine = make_engine(
        config,
        phase,
        built.module,
        layout,
        mesh,
        costs=built.stage_costs() if mesh.pipeline > 1 and parallel.stages is None else None,
        looked_at=bool(techniques),
    )
    if once:
        scatter(values or {}, engine, mesh)
        values = None
    task = _task(built.task, items_per_row)
    weights = views_of(engine, mesh)
    masters = engine.masters
    return Assembly(
        phase=phase,
        built=built,
        engine=engine,
        weights=weights,
        optimizer=masters.optimizer if masters is not None else make_optimizer(config, phase, weights),
        chain=make_chain(config, techniques, weights, mesh, facts, task, engine, steps=steps),
        task=task,
        inputs=inputs_on(task, layout.attention, mesh),
        plan=list(plan),
        names=names,
        moving=Moving(engine, weights, mesh) if masters is not None else None,
    )


def make_state(
    assembly: Assembly, keys: Sequence[str]
) -> tuple[dict[str, tuple[Weight, Tensor]], dict[str, Tensor]]:
    """Empty optimizer state for the saved ``name/key`` entries whose weights live here: (moments, counts).

    When it is filled, as all parameters are, call `settle`.
    """
    by_name = {w.name: w for w in assembly.weights}
    if assembly.moving is not None:
        return _loose_state(by_name, keys)
    for full in keys:
        name, key = full.rsplit("/", 1)
        if name in by_name:
            weight = by_name[name]
            like = weight.tensor.detach()
            value = torch.zeros((), device=like.device) if key == "step" else torch.zeros_like(like)
            assembly.optimizer.state[weight.tensor][key] = value
    return assembly.moments(), assembly.counts()


def settle(
    assembly: Assembly, moments: Mapping[str, tuple[Weight, Tensor]], counts: Mapping[str, Tensor]
) -> None:
    """Parameters, dense copies and the state that `make_state` gave were written: training goes on with them."""
    if assembly.moving is not None:
        assembly.moving.settle_all({key: local for key, (_, local) in moments.items()}, counts)
    else:
        assembly.engine.written()


def _loose_state(
    by_name: Mapping[str, Weight], keys: Sequence[str]
) -> tuple[dict[str, tuple[Weight, Tensor]], dict[str, Tensor]]:
    """Room for state that the engine takes over afterwards."""
    moments, counts = {}, {}
    for full in keys:
        name, key = full.rsplit("/", 1)
        if name in by_name:
            local = by_name[name].local
            if key == "step":
                counts[full] = torch.zeros((), device=local.device)
            else:
                moments[full] = (by_name[name], torch.zeros_like(local))
    return moments, counts


def _refuse_idle(techniques: Sequence[Technique], model: nn.Module, phase: PhaseConfig) -> None:
    for technique in techniques:
        if not technique.matched(model):
            names = [name for name, _ in model.named_parameters()]
            shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
            raise ConfigError(
                f"phase {phase.name}: {name_of(type(technique))} matches no parameter with match={technique.match!r}; "
                f"the model has {shown}"
            )


def layout_of(built: BuiltModel, config: RunConfig, plan: Sequence[PlanEntry]) -> Layout:
    """How the mesh may cut the model: by its own tensor plan or the config's, and never through an attention head.

    plan: what earlier phases did; the numbers of heads that they left count, not those of the model as first built.
    """
    layout = built.layout
    if config.parallel.tensor_plan is not None:
        cuts = {glob: cut for glob, cut in config.parallel.tensor_plan.items() if cut != "replicate"}
        layout = replace(layout, tensor_plan=cuts, divisible={})
    heads: dict[str, int] = {}
    for line in plan:
        heads |= line["record"].get("heads", {})
    cut = {
        f"heads of {name}": count
        for name, count in heads.items()
        if any(fnmatchcase(name, glob) for glob in layout.tensor_plan)
    }
    return replace(layout, divisible={**layout.divisible, **cut})


def with_sums(built: BuiltModel, layout: Layout, degree: int) -> Layout:
    """`layout` with the parameters whose gradients are added over a tensor axis of this degree."""
    from ..parallel.tensor import gathered_of, resolve_plan

    cut = resolve_plan(built.module, layout, degree)
    if built.input_shape is None:
        return layout
    return replace(
        layout, summed=built.summed(cut, degree, frozenset(gathered_of(built.module, layout, cut)))
    )


def make_optimizer(config: RunConfig, phase: PhaseConfig, weights: Sequence[Weight]) -> torch.optim.Optimizer:
    """The phase's optimizer over the local tensors of ``weights``."""
    return build_optimizer(config.optimizer_of(phase), [(w.name, w.tensor) for w in weights])


def make_chain(
    config: RunConfig,
    techniques: Sequence[Technique],
    weights: Sequence[Weight],
    mesh: Mesh,
    facts: Facts,
    task: Task,
    engine: Engine,
    *,
    steps: int,
) -> Chain:
    """The phase's techniques at work on ``weights``, their sums over the ranks that hold other parts."""

    def reduce(x: Tensor, operation: str) -> Tensor:
        return mesh.reduce(x, operation, PARTS)

    def over_rows(x: Tensor, operation: str) -> Tensor:
        return mesh.reduce(x, operation, SAME_STAGE)

    run = Run(
        weights,
        steps=steps,
        seed=config.seed,
        reduce=reduce,
        modules=engine.modules(),
        over_rows=over_rows,
        now=engine.now,
        teacher=Teachers(techniques, config, mesh, facts, engine),
        items_mask=lambda columns, valid, logits: task.items(columns, valid),
        copies=mesh.tensor,
        piece=_piece(mesh),
        whole=whole_features,
    )
    chain = Chain(techniques, run)
    chain.set_up()
    return chain


def _piece(mesh: Mesh) -> Piece | None:
    if mesh.context == 1:
        return None
    here = piece_of(mesh)
    return Piece(pieces=here.pieces, places=here.places, gather=here.gather)


def _task(name: str, items_per_row: int | None) -> Task:
    task = task_for(name)
    if items_per_row is None or task.uniform_items_per_row is not None:
        return task
    return replace(task, uniform_items_per_row=items_per_row)  # pyright: ignore[reportArgumentType]


def nowhere(config: RunConfig) -> str:
    """The device on which this model is built without values, where that is possible."""
    return "meta" if isinstance(config.model, str) or "name" in config.model else "cpu"
