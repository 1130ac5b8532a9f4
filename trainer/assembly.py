"""One phase's model on the mesh, with its optimizer and its techniques: put together, taken whole, put together anew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..compression import Chain, Run, Technique, Weight, kept_zeros, replay, weights_of
from ..compression.pruning.keep_zeros import KeepZeros
from ..compression.replay import PlanEntry, entry
from ..parallel import Mesh, NativeEngine
from ..parallel.split import module_costs
from ..parallel.whole import gather, scatter
from .config import PhaseConfig, RunConfig
from .gradients import PARTS
from .models import BuiltModel, build_model
from .optimizers import build_optimizer
from .precision import autocast
from .tasks import Task, task_for

Facts = Mapping[str, Any]
"""What the data says about itself: input_shape, classes, vocabulary, length."""


@dataclass(kw_only=True)
class Assembly:
    """All that one phase trains with. Made by `assemble`."""

    phase: PhaseConfig
    built: BuiltModel
    engine: NativeEngine
    weights: list[Weight]
    optimizer: torch.optim.Optimizer
    chain: Chain
    task: Task
    plan: list[PlanEntry]
    names: list[str]  # all parameters of the whole model, in its order

    def moments(self) -> dict[str, tuple[Weight, Tensor]]:
        """Optimizer state shaped like its weight: ``name/key`` → (weight, local tensor)."""
        return {
            f"{w.name}/{key}": (w, value)
            for w in self.weights
            for key, value in self.optimizer.state.get(w.tensor, {}).items()
            if isinstance(value, Tensor) and value.shape == w.tensor.shape and key != "step"
        }

    def counts(self) -> dict[str, Tensor]:
        """Optimizer state that is one number per weight (Adam's step): ``name/key`` → 0-dim tensor."""
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


def techniques_of(phase: PhaseConfig, plan: Sequence[PlanEntry]) -> list[Technique]:
    """The phase's techniques in list order, after one that keeps the zeros which earlier phases delivered."""
    zeros = kept_zeros(plan)
    keep: list[Technique] = [KeepZeros(match=tuple(zeros))] if zeros else []
    return keep + [technique.build() for technique in phase.techniques]


def assemble(
    config: RunConfig,
    phase: PhaseConfig,
    plan: Sequence[PlanEntry],
    mesh: Mesh,
    facts: Facts,
    *,
    steps: int,
    items_per_row: int | None = None,
) -> Assembly:
    """Build the model, prepare it, spread it over the mesh and give it an optimizer and its techniques.

    steps: optimizer steps of the phase.   items_per_row: constant number of loss items a row, if the data has one.
    raises: ConfigError where model, mesh and techniques do not go together.
    """
    built = whole_model(config, plan, facts)
    techniques = techniques_of(phase, plan)
    for technique in techniques:
        technique.prepare(built.module)
    names = [name for name, _ in built.module.named_parameters()]
    parallel = config.parallel
    engine = NativeEngine(
        built.module,
        _layout(built, config),
        mesh,
        schedule=parallel.schedule,
        microbatches=parallel.microbatches,
        stages=parallel.stages,
        costs=_costs(built) if mesh.pipeline > 1 and parallel.stages is None else None,
    )
    if config.precision != "fp32":
        for part in engine.parts:
            _compute_in(part, config.precision, mesh.device)
    coordinates = {axis: mesh.coordinates[axis] for axis in PARTS if axis != "pipeline"}
    weights = weights_of(engine.parameters(), coordinates)
    return Assembly(
        phase=phase,
        built=built,
        engine=engine,
        weights=weights,
        optimizer=_optimizer(config, phase, weights, mesh),
        chain=_chain(config, techniques, weights, mesh, steps),
        task=_task(built.task, items_per_row),
        plan=list(plan),
        names=names,
    )


def next_phase(
    now: Assembly, config: RunConfig, phase: PhaseConfig, mesh: Mesh, facts: Facts, *, steps: int
) -> Assembly:
    """Finalize the phase that ends and put together the one that begins, in the same processes.

    Where shapes change the model is made whole on rank 0, finalized there, and sharded anew from there, the
    moments following the kept indices; otherwise the sharded model goes on as it is.
    """
    plan, whole = finalize(now, config, mesh, facts)
    techniques = techniques_of(phase, plan)
    same_optimizer = config.optimizer_of(phase).name == config.optimizer_of(now.phase).name
    if whole is None and not any(t.changes_model for t in techniques):
        optimizer = _optimizer(config, phase, now.weights, mesh)
        if same_optimizer:
            optimizer.state.update(now.optimizer.state)
        chain = _chain(config, techniques, now.weights, mesh, steps)
        return Assembly(**{**vars(now), "phase": phase, "optimizer": optimizer, "chain": chain, "plan": plan})
    if whole is None:
        whole = _gather(now, mesh)
    then = assemble(
        config, phase, plan, mesh, facts, steps=steps, items_per_row=now.task.uniform_items_per_row
    )
    _scatter(whole, then, mesh, with_moments=same_optimizer)
    return then


def finalize(now: Assembly, config: RunConfig, mesh: Mesh, facts: Facts) -> tuple[list[PlanEntry], Any]:
    """End the phase: the plan with its records, and the whole finalized state on rank 0 where shapes changed.

    returns: (plan, whole) with whole None where the sharded model is as it was.
    """
    now.chain.finish()
    plan = list(now.plan)
    if not any(t.changes_model for t in now.chain.techniques):
        model = now.built.module if mesh.world == 1 else None
        model = model or whole_model(config, now.plan, facts, _nowhere(config)).module
        plan += [entry(now.phase.name, t, t.finalize(model)) for t in now.chain.techniques]
        return plan, None
    whole = _gather(now, mesh)
    records: list[Any] = [None]
    if mesh.rank == 0:
        model = whole_model(config, now.plan, facts).module
        for technique in now.chain.techniques:
            technique.prepare(model)
        model.load_state_dict(whole["model"], assign=True)
        records = [[t.finalize(model) for t in now.chain.techniques]]
        whole["model"] = {k: v.detach() for k, v in model.state_dict().items()}
        for record in records[0]:
            whole["moments"] = follow(whole["moments"], record)
    if mesh.world > 1:
        dist.broadcast_object_list(records, src=0)
    plan += [entry(now.phase.name, t, r) for t, r in zip(now.chain.techniques, records[0], strict=True)]
    return json.loads(json.dumps(plan)), whole


def follow(moments: Mapping[str, Tensor], record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whole optimizer moments after a removal: ``record["kept"]`` is parameter → {dim: kept indices}."""
    kept: Mapping[str, Mapping[str, Sequence[int]]] = record.get("kept", {})
    followed = {}
    for key, moment in moments.items():
        for dim, indices in kept.get(key.rsplit("/", 1)[0], {}).items():
            moment = moment.index_select(int(dim), torch.as_tensor(indices, dtype=torch.long))
        followed[key] = moment
    return followed


def _gather(now: Assembly, mesh: Mesh) -> dict[str, Any]:
    placed = {key: weight.wrap(local) for key, (weight, local) in now.moments().items()}
    return {
        "model": gather(now.engine, mesh),
        "moments": gather(placed, mesh),
        "counts": gather(now.counts(), mesh),
    }


def _scatter(whole: Mapping[str, Any], then: Assembly, mesh: Mesh, *, with_moments: bool) -> None:
    scatter(whole["model"], then.engine, mesh)
    if not with_moments:
        return
    keys: list[Any] = [[list(whole["moments"]), {k: str(v.dtype) for k, v in whole["counts"].items()}]]
    if mesh.world > 1:
        dist.broadcast_object_list(keys, src=0)
    moments = make_state(then, [*keys[0][0], *keys[0][1]])
    placed = {key: then_weight.wrap(local) for key, (then_weight, local) in moments[0].items()}
    fitting = {k: v for k, v in whole["moments"].items()}
    scatter(fitting, placed, mesh)
    scatter(whole["counts"], moments[1], mesh)


def make_state(
    assembly: Assembly, keys: Sequence[str]
) -> tuple[dict[str, tuple[Weight, Tensor]], dict[str, Tensor]]:
    """Empty optimizer state for the saved ``name/key`` entries whose weights live here: (moments, counts)."""
    by_name = {w.name: w for w in assembly.weights}
    for full in keys:
        name, key = full.rsplit("/", 1)
        if name in by_name:
            weight = by_name[name]
            like = weight.tensor.detach()
            value = torch.zeros((), device=like.device) if key == "step" else torch.zeros_like(like)
            assembly.optimizer.state[weight.tensor][key] = value
    return assembly.moments(), assembly.counts()


def _costs(built: BuiltModel) -> list[float] | None:
    """Forward FLOPs of the model's members, for a balanced split into stages."""
    if not built.layout.order:
        return None  # the engine says which module names there are to choose from
    example = built.example(1)[0] if built.input_shape is not None else None
    return module_costs(built.module, built.layout, example)


def _layout(built: BuiltModel, config: RunConfig) -> Any:
    if config.parallel.tensor_plan is None:
        return built.layout
    plan = {glob: cut for glob, cut in config.parallel.tensor_plan.items() if cut != "replicate"}
    return replace(built.layout, tensor_plan=plan, divisible={})


def _optimizer(
    config: RunConfig, phase: PhaseConfig, weights: Sequence[Weight], mesh: Mesh
) -> torch.optim.Optimizer:
    return build_optimizer(config.optimizer_of(phase), [(w.name, w.tensor) for w in weights])


def _chain(
    config: RunConfig, techniques: Sequence[Technique], weights: Sequence[Weight], mesh: Mesh, steps: int
) -> Chain:
    def reduce(x: Tensor, operation: str) -> Tensor:
        return mesh.reduce(x, operation, PARTS)

    return Chain(techniques, Run(weights, steps=steps, seed=config.seed, reduce=reduce))


def _task(name: str, items_per_row: int | None) -> Task:
    task = task_for(name)
    if items_per_row is None or task.uniform_items_per_row is not None:
        return task
    return replace(task, uniform_items_per_row=items_per_row)  # pyright: ignore[reportArgumentType]


def _compute_in(part: nn.Module, precision: str, device: torch.device) -> None:
    """Run the part's forward under autocast; the backward outside it, as torch advises."""
    forward = part.forward

    def narrow(*args: Any, **kwargs: Any) -> Any:
        with autocast(precision, device):
            return forward(*args, **kwargs)

    part.forward = narrow


def _nowhere(config: RunConfig) -> str:
    return "meta" if isinstance(config.model, str) or "name" in config.model else "cpu"
