"""Spreading one model over several ranks: cut into stages, divide matrices, make statistics global, shard.

Apart from the engine because one process needs none of it; what only some meshes need is imported for these, because
torch's pipelines, FSDP and DTensor each take a good part of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from .batchnorm import make_global
from .data_parallel import Replicas, WholeModel, same_start
from .layout import Layout
from .materialise import give_room, is_shapes
from .mesh import Mesh
from .microbatches import InHand
from .tensor import divide, open_after, resolve_plan

if TYPE_CHECKING:
    from .pipeline import Pipeline


@dataclass(frozen=True)
class Spread:
    """The local parts of a model (one per stage held here) and what runs them."""

    parts: list[nn.Module]
    wholes: list[WholeModel]
    now: InHand
    pipeline: Pipeline | None


def spread(
    model: nn.Module,
    layout: Layout,
    mesh: Mesh,
    *,
    schedule: str,
    microbatches: int,
    stages: Any,
    costs: Any,
    offload: bool = False,
) -> Spread:
    """Take `model` apart for this rank. Everything that can be wrong is found before anything is communicated."""
    plan = resolve_plan(model, layout, mesh.tensor) if mesh.tensor > 1 else {}
    opened = open_after(model, layout.cuts or tuple(name for name, _ in model.named_children()), plan)
    gathered = set(next(reversed(opened.values()), []))  # columns that no row makes whole again
    if mesh.pipeline == 1:
        now, pipeline, parts = make_global(model, mesh), None, [model]
        return Spread(parts, [_finish(model, plan, gathered, layout, mesh, offload)], now, pipeline)
    from .linked import LinkedShadow, make_linked_part
    from .pipeline import Pipeline, make_part, plan_stages, users_of
    from .schedules import stages_of
    from .shadow import Shadow
    from .ties import Followers, find_ties, own_copy

    names = plan_stages(
        model,
        layout,
        mesh,
        schedule=schedule,
        microbatches=microbatches,
        stages=stages,
        costs=costs,
        whole=[name for name in layout.cuts[:-1] if opened[name]],
    )
    users = users_of(model, layout, names)
    ties = find_ties(model, users)
    linked = layout.links if not layout.order else None
    # The shadow is taken before anything that communicates is put into the model.
    shadow = Shadow(model, layout.order) if linked is None else LinkedShadow(model, linked)
    now = make_global(model, mesh)
    ranks = stages_of(schedule, mesh.pipeline, len(names))
    here = ranks[mesh.coordinates["pipeline"]]
    parts, elsewhere = [], []
    for stage in here:
        if linked is None:
            part, absent = make_part(model, names[stage], layout.order, last=stage == len(names) - 1), None
        else:
            part, absent = make_linked_part(model, names[stage], linked, now)
        for tie in ties:
            if stage in tie.stages[1:]:
                own_copy(part, tie)
        parts.append(part)
        elsewhere.append(absent)
    wholes = [_finish(part, plan, gathered, layout, mesh, offload) for part in parts]
    followers = None
    if ties:
        homes = {stage: rank for rank, held in enumerate(ranks) for stage in held}
        followers = Followers(
            ties,
            dict(zip(here, parts, strict=True)),
            [homes[stage] for stage in range(len(names))],
            mesh,
        )
    pipeline = Pipeline(
        parts,
        names,
        shadow,
        mesh,
        now,
        schedule=schedule,
        microbatches=microbatches,
        elsewhere=None if linked is None else elsewhere,
        followers=followers,
    )
    return Spread(parts, wholes, now, pipeline)


def _finish(
    part: nn.Module, plan: dict[str, str], gathered: set[str], layout: Layout, mesh: Mesh, offload: bool
) -> WholeModel:
    shapes = is_shapes(part)
    if not shapes:
        same_start(part, mesh)
    divide(part, plan, gathered, mesh)
    sharded = mesh.shard > 1 or (mesh.replicate > 1 and mesh.tensor * mesh.pipeline > 1)
    if sharded:
        from .fully_sharded import shard_parameters

        shard_parameters(part, layout, mesh, keep_whole_in_step=mesh.pipeline > 1, offload=offload)
    if shapes:
        give_room(part, mesh.device, offload=offload)
    if sharded:
        from .fully_sharded import Sharded

        return Sharded(part)
    return Replicas(part, mesh) if mesh.replicate > 1 else WholeModel(part)
