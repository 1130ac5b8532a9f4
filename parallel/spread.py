"""Spreading one model over several ranks: cut into stages, divide matrices, make statistics global, shard.

Apart from the engine because one process needs none of it; what only some meshes need is imported for these, because
torch's pipelines, FSDP and DTensor each take a good part of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from .batchnorm import make_global
from .context import divide_sequences, refuse_whole_sequences
from .data_parallel import Replicas, WholeModel, same_start
from .layout import Layout
from .materialise import give_room, is_shapes
from .mesh import Mesh
from .microbatches import InHand
from .recompute import blocks_of
from .split_tokens import inside, live_blocks, refuse_finer, split_parameters, split_tokens
from .tensor import divide, gathered_of, open_after, resolve_plan

if TYPE_CHECKING:
    from .pipeline import Pipeline


@dataclass(frozen=True)
class Spread:
    """The local parts of a model (one per stage held here) and what runs them."""

    parts: list[nn.Module]
    wholes: list[WholeModel]
    now: InHand
    pipeline: Pipeline | None
    summed: set[str]
    """Parameters whose gradients the tensor axis adds up."""


@dataclass(frozen=True)
class _Cuts:
    """How every part is cut."""

    plan: dict[str, str]
    gathered: set[str]
    layout: Layout
    blocks: list[str]
    parts_of_tokens: list[str]
    parts_of_classes: str

    def summed(self, parts: list[nn.Module]) -> set[str]:
        """Parameters that compute with a part of what flows: of the features, or of the tokens."""
        split = [split_parameters(part, self.plan, self.parts_of_tokens) for part in parts]
        return set(self.layout.summed).union(*split)


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
    sequence_parallel: bool = False,
    loss_parallel: bool = False,
) -> Spread:
    """Take `model` apart for this rank. Everything that can be wrong is found before anything is communicated."""
    layout = refuse_finer(model, layout, mesh.tensor, sequence=sequence_parallel, loss=loss_parallel)
    plan = resolve_plan(model, layout, mesh.tensor) if mesh.tensor > 1 else {}
    if mesh.context > 1:
        refuse_whole_sequences(model, layout.attention, layout.uncut, mesh.context)
    opened = open_after(model, layout.cuts, plan)
    blocks = blocks_of(model, layout)
    cuts = _Cuts(
        plan,
        gathered_of(model, layout, plan),
        layout,
        blocks,
        blocks if sequence_parallel else [],
        layout.head if loss_parallel else "",
    )
    if mesh.pipeline == 1:
        now = make_global(model, mesh)
        return Spread([model], [_finish(model, cuts, mesh, offload)], now, None, cuts.summed([model]))
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
    wholes = [_finish(part, cuts, mesh, offload) for part in parts]
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
    return Spread(parts, wholes, now, pipeline, cuts.summed(parts))


def _finish(part: nn.Module, cuts: _Cuts, mesh: Mesh, offload: bool) -> WholeModel:
    shapes = is_shapes(part)
    if not shapes:
        same_start(part, mesh)
    if mesh.context > 1:
        divide_sequences(part, cuts.blocks, mesh)
    live = live_blocks(part, cuts.parts_of_tokens)
    if live:
        held = {name: style for name, style in cuts.plan.items() if inside(name, live)}
        split_tokens(part, held, live, mesh.axes("tensor"))
    divide(
        part,
        cuts.plan,
        cuts.gathered,
        mesh,
        counts=cuts.layout.counts,
        parts_of_tokens=live,
        parts_of_classes=cuts.parts_of_classes,
    )
    sharded = mesh.shard * mesh.context > 1 or (mesh.replicate > 1 and mesh.tensor * mesh.pipeline > 1)
    if sharded:
        from .fully_sharded import shard_parameters

        shard_parameters(part, cuts.layout, mesh, keep_whole_in_step=mesh.pipeline > 1, offload=offload)
    if shapes:
        give_room(part, mesh.device, offload=offload)
    if sharded:
        from .fully_sharded import Sharded

        return Sharded(part)
    return Replicas(part, mesh) if mesh.replicate > 1 else WholeModel(part)
