"""From one phase to the next: the model made whole, finalized, prepared, and sharded anew in the same processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..compression import Chain, State, Technique
from ..compression.replay import PlanEntry, entry
from ..compression.technique import EXAMPLE
from ..parallel import Mesh
from ..parallel.whole import gather, scatter
from .artifact import save_artifact
from .assembly import (
    Assembly,
    Facts,
    assemble,
    held,
    make_chain,
    make_optimizer,
    make_state,
    nowhere,
    settle,
    techniques_for,
    whole_model,
)
from .config import PhaseConfig, RunConfig
from .models import BuiltModel
from .teacher_model import phase_folder, taught_by

Whole = dict[str, dict[str, Tensor]]
"""Whole tensors on rank 0, empty on the others: ``model`` by name, ``moments`` and ``counts`` by ``name/key``."""


def next_phase(
    now: Assembly, config: RunConfig, phase: PhaseConfig, mesh: Mesh, facts: Facts, *, steps: int
) -> Assembly:
    """Finalize the phase that ends and put together the one that begins, in the same processes.

    Where shapes or modules change, the model is made whole on rank 0, finalized and prepared there, and sharded
    anew from there, the moments following the kept indices; otherwise the sharded model goes on as it is.
    """
    plan, whole = finalize(now, config, mesh, facts)
    if taught_by(config, now.phase.name):
        _keep_as_teacher(now, plan, whole, config, mesh, facts)
    techniques = techniques_for(config, phase, plan, facts)
    same_optimizer = config.optimizer_of(phase).name == config.optimizer_of(now.phase).name
    stays = same_optimizer or now.moving is None  # an engine that moves the weights is bound to its optimizer
    if whole is None and stays and not any(t.changes_model for t in techniques):
        optimizer = _go_on(now, config, phase, techniques, same_optimizer)
        chain = make_chain(config, techniques, now.weights, mesh, facts, now.task, now.engine, steps=steps)
        return Assembly(**{**vars(now), "phase": phase, "optimizer": optimizer, "chain": chain, "plan": plan})
    if whole is None:
        whole = _gather(now, mesh, with_moments=same_optimizer)
    if mesh.rank == 0:
        _prepare(whole, whole_model(config, plan, facts).module, techniques)
    now.engine.close()
    then = assemble(
        config,
        phase,
        plan,
        mesh,
        facts,
        steps=steps,
        items_per_row=now.task.uniform_items_per_row,
        values=whole["model"],
    )
    _scatter(whole, then, mesh, with_moments=same_optimizer)
    return then


def finalize(
    now: Assembly, config: RunConfig, mesh: Mesh, facts: Facts, *, with_moments: bool = True
) -> tuple[list[PlanEntry], Whole | None]:
    """End the phase: the plan with its records, and the whole finalized state on rank 0 where shapes changed.

    with_moments: False where training does not go on: rank 0 then needs no room for whole optimizer moments.
    returns: (plan, whole) with whole None where the sharded model is as it was. Techniques that do not change the
    model finalize one without values, so that none can write into a copy that is then dropped.
    """
    now.chain.finish()
    if now.moving is not None:
        now.moving.adopt()
    techniques, records = now.chain.techniques, []
    states = [_state(now.chain, index, mesh) for index in range(len(techniques))]
    whole: Whole | None = None
    if not any(t.changes_model for t in techniques):
        model = whole_model(config, now.plan, facts, nowhere(config)).module
        records = [t.finalize(model, state) for t, state in zip(techniques, states, strict=True)]
    else:
        whole = _gather(now, mesh, with_moments=with_moments)
        if mesh.rank == 0:
            records = _finalize(whole, whole_model(config, now.plan, facts), techniques, states)
        if mesh.world > 1:
            box = [records]
            dist.broadcast_object_list(box, src=0)
            records = box[0]
    lines = [entry(now.phase.name, t, r) for t, r in zip(techniques, records, strict=True)]
    return json.loads(json.dumps([*now.plan, *lines])), whole


def _keep_as_teacher(
    now: Assembly, plan: list[PlanEntry], whole: Whole | None, config: RunConfig, mesh: Mesh, facts: Facts
) -> None:
    """Write the finalized model as an artifact into the run folder, where later phases and resumed runs find it."""
    tensors = whole["model"] if whole is not None else gather(now.engine, mesh)
    if mesh.rank == 0:
        built = whole_model(config, plan, facts, nowhere(config))
        stored = built.module.state_dict().keys()  # buffers that a model makes for itself are in no file
        save_artifact(
            phase_folder(config, now.phase.name),
            tensors={name: tensor for name, tensor in tensors.items() if name in stored},
            model_spec=built.spec,
            plan=plan,
            format="safetensors",
        )
    if mesh.world > 1:
        dist.barrier()


def follow(moments: Mapping[str, Tensor], record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whole optimizer moments after a removal: ``record["kept"]`` is parameter → {dim: kept indices}."""
    kept: Mapping[str, Mapping[str, Sequence[int]]] = record.get("kept", {})
    followed = {}
    for key, moment in moments.items():
        for dim, indices in kept.get(_name(key), {}).items():
            moment = moment.index_select(int(dim), torch.as_tensor(indices, dtype=torch.long))
        followed[key] = moment
    return followed


def _state(chain: Chain, index: int, mesh: Mesh) -> dict[str, dict[str, Tensor]]:
    """What a technique wants to see of its own buffers, whole on rank 0 (nothing on the others)."""
    return {
        key: gather({name: p.wrap(local) for name, (p, local) in chain.buffers(index, key).items()}, mesh)
        for key in chain.techniques[index].delivers
    }


def _finalize(
    whole: Whole, built: BuiltModel, techniques: Sequence[Technique], states: Sequence[State]
) -> list[dict[str, Any]]:
    model = built.module
    for technique in techniques:
        technique.prepare(model)
    scatter(whole["model"], held(model), Mesh())
    inputs = (
        {str(number): x for number, x in enumerate(built.example(1))}
        if any(t.traces for t in techniques)
        else {}
    )
    records = [
        t.finalize(model, {**state, EXAMPLE: inputs} if t.traces else state)
        for t, state in zip(techniques, states, strict=True)
    ]
    whole["model"] = held(model)
    for record in records:
        whole["moments"] = follow(whole["moments"], record)
    return records


def _prepare(whole: Whole, model: nn.Module, techniques: Sequence[Technique]) -> None:
    """Bring the whole state into the shape in which the next phase trains it.

    Optimizer state goes on where its parameter does; one that is gone, or has another shape without a record of
    what was kept, starts anew.
    """
    scatter(whole["model"], held(model), Mesh())
    for technique in techniques:
        technique.prepare(model)
    whole["model"] = held(model)
    shapes = {name: tensor.shape for name, tensor in whole["model"].items()}
    fresh = {_name(key) for key, moment in whole["moments"].items() if shapes.get(_name(key)) != moment.shape}
    for kind in ("moments", "counts"):
        whole[kind] = {key: value for key, value in whole[kind].items() if _name(key) not in fresh}


def _gather(now: Assembly, mesh: Mesh, *, with_moments: bool) -> Whole:
    moments = now.moments() if with_moments else {}
    return {
        "model": gather(now.engine, mesh),
        "moments": gather({key: weight.wrap(local) for key, (weight, local) in moments.items()}, mesh),
        "counts": gather(now.counts() if with_moments else {}, mesh),
    }


def _scatter(whole: Whole, then: Assembly, mesh: Mesh, *, with_moments: bool) -> None:
    scatter(whole["model"], then.engine, mesh)
    if not with_moments:
        settle(then, {}, {})
        return
    keys = [[*whole["moments"], *whole["counts"]]]
    if mesh.world > 1:
        dist.broadcast_object_list(keys, src=0)
    moments, counts = make_state(then, keys[0])
    scatter(whole["moments"], {key: weight.wrap(local) for key, (weight, local) in moments.items()}, mesh)
    scatter(whole["counts"], counts, mesh)
    settle(then, moments, counts)


def _go_on(
    now: Assembly, config: RunConfig, phase: PhaseConfig, techniques: Sequence[Technique], same: bool
) -> torch.optim.Optimizer:
    """The next phase's optimizer on the model as it stands. Collective."""
    if now.moving is not None:
        now.moving.retune(config.optimizer_of(phase), looked_at=bool(techniques))
        return now.optimizer
    optimizer = make_optimizer(config, phase, now.weights)
    if same:
        optimizer.state.update(now.optimizer.state)
    return optimizer


def _name(key: str) -> str:
    """The parameter of an optimizer state's ``name/key``."""
    return key.rsplit("/", 1)[0]
