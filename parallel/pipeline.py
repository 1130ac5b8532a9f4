"""Pipeline parallelism: runs of modules on different ranks, micro-batches flowing through them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _Action
from torch.distributed.pipelining.schedules import _ComputationType as _Kind

from ..errors import ConfigError
from .context import shapes_only
from .layout import Layout
from .linked import LinkedShadow, sendable
from .mesh import Mesh
from .microbatches import InHand, Piece, cut
from .schedules import SCHEDULES, STAGES_PER_RANK, check_schedule, home_of_outputs, stages_of
from .shadow import Shadow, share_tensors
from .split import balanced, by_hand, parameter_costs
from .tensor import cut_gradients
from .ties import Followers


def plan_stages(
    model: nn.Module,
    layout: Layout,
    mesh: Mesh,
    *,
    schedule: str,
    microbatches: int,
    stages: Sequence[Sequence[str]] | None,
    costs: Sequence[float] | None,
    whole: Sequence[str] = (),
) -> list[tuple[str, ...]]:
    """The module names of every stage; see `stages_of` for where they live.

    stages: one list of globs over `layout.order` per stage; None = balanced by `costs` (one per member of the
    order; None = numbers of parameters).   whole: modules after which must not be cut.
    raises: ConfigError for whatever the model, the schedule and the mesh cannot do together.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"parallel.schedule={schedule!r}: want one of {', '.join(SCHEDULES)}")
    order = layout.cuts
    if not order:
        names = [name for name, _ in model.named_modules() if name]
        raise ConfigError(
            f"parallel.pipeline={mesh.pipeline}: nobody has said in which order this model runs its modules; give "
            "its layout an `order` of modules that each take one tensor and give one, or `links`; the model has "
            + ", ".join(names)
        )
    several = SCHEDULES[schedule].several
    count = len(stages) if stages is not None else mesh.pipeline * (STAGES_PER_RANK if several else 1)
    if count > len(order):
        raise ConfigError(
            f"parallel: {count} pipeline stages, but the model has {len(order)} modules to divide"
        )
    check_schedule(schedule, ranks=mesh.pipeline, microbatches=microbatches, stages=count)
    forbidden = {order.index(name) for name in whole}
    if stages is not None:
        lengths = by_hand(order, stages)
    else:
        if costs is None:
            costs = layout.links.costs if layout.links is not None else parameter_costs(model, order)
        if len(costs) != len(order):
            raise ConfigError(
                f"{len(costs)} costs for {len(order)} modules; want one for each member of the order"
            )
        try:
            lengths = balanced(costs, count, forbidden)
        except ValueError as error:
            raise ConfigError(f"parallel.pipeline={mesh.pipeline}: {error}; {_divided(whole)}") from error
    ends = [sum(lengths[: number + 1]) for number in range(count)]
    wrong = [order[end - 1] for end in ends[:-1] if end - 1 in forbidden]
    if wrong:
        raise ConfigError(f"parallel.stages: a stage ends at {wrong[0]}; {_divided(wrong)}")
    return [order[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _divided(names: Sequence[str]) -> str:
    if not names:
        return "use fewer stages"
    return (
        f"after {', '.join(names)} activations are divided over the tensor axis, so a stage cannot end there"
    )


def users_of(model: nn.Module, layout: Layout, stages: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Parameter, under all its names → the stages that compute with it.

    raises: ConfigError where a parameter or buffer belongs to no stage.
    """
    if not layout.order:
        assert layout.links is not None
        number = {name: stage for stage, names in enumerate(stages) for name in names}
        home = [number[name] for name in layout.links.names]
        return {name: sorted({home[link] for link in links}) for name, links in layout.links.users.items()}
    homes: dict[int, set[int]] = {}
    for number, names in enumerate(stages):
        for name in names:
            module = model.get_submodule(name)
            for tensor in (*module.parameters(), *module.buffers()):
                homes.setdefault(id(tensor), set()).add(number)
    users: dict[str, list[int]] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if id(tensor) not in homes:
            raise ConfigError(
                f"pipeline: {name} is in no module of the layout's order, so no stage would have it"
            )
        users[name] = [
            number
            for number, names in enumerate(stages)
            if any(name.startswith(f"{one}.") or name == one for one in names)
        ]
    return users


def make_part(model: nn.Module, names: Sequence[str], order: Sequence[str], *, last: bool) -> nn.Module:
    """A stage: the tree of `model` with the very same parameters, and Identity where other stages' modules are.

    Names do not change. Its forward runs just `names`, one after the other.
    """
    part = share_tensors(model, lambda tensor: tensor)
    for name in order:
        if name not in names:
            parent, _, child = name.rpartition(".")
            setattr(part.get_submodule(parent), child, nn.Identity())

    def forward(x: Tensor) -> Tensor:
        for name in names:  # looked up anew: FSDP and tensor parallelism may replace what a name stands for
            x = part.get_submodule(name)(x)
        return x if last else sendable(x)

    part.forward = forward
    return part


class _Stage(PipelineStage):
    """A stage that says which rows are real before it runs a micro-batch."""

    before: Callable[[int], None]

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self.before(fwd_chunk_id)
        return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)


class _ReadyStage(_Stage):
    """The one stage of a rank on CPUs: it is ready for the next micro-batch while it computes this one.

    Gloo moves nothing before both sides have asked. Asked for when it is wanted, as torch's schedules do, every
    micro-batch would wait for its way; one ahead, it has come by then. Each neighbour sends in the order of
    micro-batches and one kind of thing alone, so that what is asked for ahead is what comes.
    """

    def __init__(self, *args: Any, microbatches: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._microbatches = microbatches
        self._coming: dict[tuple[str, int], list[Any]] = {}

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[Any]:
        return self._ask("forward", fwd_chunk_id, super().get_fwd_recv_ops)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[Any]:
        return self._ask("backward", bwd_chunk_id, super().get_bwd_recv_ops)

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self._wait("forward", fwd_chunk_id)
        return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self._wait("backward", bwd_chunk_id)
        return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def _ask(self, way: str, number: int, wanted: Callable[[int], list[Any]]) -> list[Any]:
        """Ask for this micro-batch and the next, where that has not been done; the schedule has nothing to wait for."""
        for one in range(number, min(number + 2, self._microbatches)):
            if (way, one) not in self._coming:
                self._coming[way, one] = [
                    dist.irecv(op.tensor, group=op.group, group_src=op.group_peer) for op in wanted(one)
                ]
        return []

    def _wait(self, way: str, number: int) -> None:
        for work in self._coming.pop((way, number), ()):
            work.wait()


def _forward_only(schedule: Any) -> None:
    """Leave out what a schedule of several stages does for the backward: folded ones would miss its gradients."""
    actions = []
    for action in schedule.pipeline_order_with_comms[schedule.rank]:
        for one in action.sub_actions or (action,):
            if one.computation_type in (_Kind.FORWARD, _Kind.SEND_F, _Kind.RECV_F):
                actions.append(one)
    here = [stage.stage_index for stage in schedule._stages]
    schedule.pipeline_order_with_comms[schedule.rank] = [
        *(_Action(number, _Kind.UNSHARD, None) for number in here),
        *actions,
        *(_Action(number, _Kind.RESHARD, None) for number in here),
    ]


@dataclass
class _Step:
    """What the schedule's callbacks need of the step in hand."""

    pieces: list[Piece]
    loss: Callable[[Any, Mapping[str, Tensor], Tensor | None], Tensor] | None


class Pipeline:
    """Runs steps of the local stages `parts`; all ranks of a pipeline call it with the same columns."""

    def __init__(
        self,
        parts: Sequence[nn.Module],
        stages: Sequence[Sequence[str]],
        shadow: Shadow | LinkedShadow,
        mesh: Mesh,
        now: InHand,
        *,
        schedule: str,
        microbatches: int,
        elsewhere: Sequence[set[str]] | None = None,
        followers: Followers | None = None,
    ) -> None:
        """elsewhere: of each part, the names of modules in it that do nothing there.   followers: tied parameters."""
        self.followers = followers
        self._parts, self._shadow, self._mesh, self._now = parts, shadow, mesh, now
        self._ends = [sum(map(len, stages[: number + 1])) for number in range(len(stages))]
        self._kind, self._microbatches = schedule, microbatches
        here = stages_of(schedule, mesh.pipeline, len(stages))[mesh.coordinates["pipeline"]]
        self.here, self.home_of_outputs = here, home_of_outputs(schedule, mesh.pipeline)
        everything = {name for names in stages for name in names}
        alone = [everything - set(stages[number]) for number in here]
        self.elsewhere = list(elsewhere) if elsewhere is not None else alone  # of each part: stand-ins only
        self._schedules: dict[Any, Any] = {}
        self._step = _Step([], None)

    def forward_backward(
        self, columns: Mapping[str, Tensor], valid: Tensor | None, inputs: Any, loss: Any
    ) -> Tensor:
        """As `NativeEngine.forward_backward`; the loss comes in float64 on every rank."""
        schedule, x = self._prepare(columns, valid, inputs, loss)
        losses: list[Tensor] = []
        args = (x,) if self._mesh.first_stage else ()
        number = torch.arange(self._microbatches)  # the "target": which micro-batch the loss is of
        schedule.step(*args, target=number, losses=losses, return_outputs=False)
        if self._mesh.tensor > 1:
            for part in self._parts:
                cut_gradients(part.parameters())
        if self.followers is not None:
            self.followers.give_back()
        self._step = _Step([], None)
        zero = torch.zeros((), dtype=torch.float64, device=self._mesh.device)
        return torch.stack([value.detach().double() for value in losses]).sum() if losses else zero

    def forward(self, columns: Mapping[str, Tensor], inputs: Any, valid: Tensor | None = None) -> Any | None:
        """As `NativeEngine.forward`; any number of rows that the micro-batches divide."""
        schedule, x = self._prepare(columns, valid, inputs, None)
        args = (x,) if self._mesh.first_stage else ()
        outputs = schedule.eval(*args)
        self._step = _Step([], None)
        return outputs

    def _prepare(self, columns: Mapping[str, Tensor], valid: Tensor | None, inputs: Any, loss: Any) -> Any:
        x = named = inputs(columns)
        if isinstance(x, Mapping) and (len(x) == 1 or isinstance(self._shadow, LinkedShadow)):
            x = next(iter(x.values()))
        if not isinstance(x, Tensor):
            raise ConfigError(
                "pipeline: stages pass one tensor on, but the model is called with "
                + (f"{', '.join(x)}; pack them into one" if isinstance(x, Mapping) else type(x).__name__)
            )
        if len(x) % self._microbatches or not len(x):
            raise ConfigError(
                f"pipeline: {len(x)} rows cannot be cut into {self._microbatches} equal micro-batches; pad them "
                "(valid says which rows are real)"
            )
        rows = len(x) // self._microbatches
        self._step = _Step(cut(columns, valid, [rows] * self._microbatches), loss)
        self._now.inputs = inputs
        if self.followers is not None:
            self.followers.follow()
        shapes = [(y.dtype, y.shape[1:]) for y in (named.values() if isinstance(named, Mapping) else [x])]
        key = (
            rows,
            *shapes,
            loss is not None,
            torch.is_autocast_enabled(self._mesh.device.type),
        )
        if key not in self._schedules:
            self._schedules[key] = self._make_schedule(
                x[:rows], inputs(self._step.pieces[0].columns), with_loss=loss is not None
            )
        return self._schedules[key], x

    def _before(self, number: int) -> None:
        piece = self._step.pieces[number]
        self._now.columns, self._now.valid = piece.columns, piece.valid

    def _loss(self, outputs: Any, number: Tensor) -> Tensor:
        piece = self._step.pieces[int(number)]
        assert self._step.loss is not None
        return self._step.loss(outputs, piece.columns, piece.valid)

    def _make_schedule(self, x: Tensor, inputs: Any, *, with_loss: bool) -> Any:
        """A schedule for micro-batches shaped as `x`. What flows between stages is found on shapes alone: torch
        would find it by running the stages on real and on uninitialised memory, which ruins running averages."""
        half = self._parts[0].__dict__.get("computes_in")
        narrow = nullcontext() if half is None else torch.autocast(self._mesh.device.type, dtype=half)
        pieces = shapes_only(self._mesh.context) if self._mesh.context > 1 else nullcontext()
        with torch.set_grad_enabled(with_loss), narrow, pieces:
            flow = self._shadow.run(inputs) if isinstance(self._shadow, LinkedShadow) else self._shadow.run(x)
        cuts = [x, *(flow[end] for end in self._ends)]
        edges = [
            torch.empty(t.shape, dtype=t.dtype, device="meta", requires_grad=t.requires_grad and with_loss)
            for t in cuts
        ]
        mesh, local = self._mesh, []
        kind = SCHEDULES[self._kind]
        ready = not kind.several and mesh.device.type == "cpu"
        kind_of_stage = partial(_ReadyStage, microbatches=self._microbatches) if ready else _Stage
        for index, part in enumerate(self._parts):
            number = self.here[index]
            stage = kind_of_stage(
                part,
                number,
                len(self._ends),
                mesh.device,
                input_args=edges[number],
                output_args=edges[number + 1],
                group=mesh.axes("pipeline").get_group(),
            )
            stage.before = self._before
            local.append(stage)
        stages: Any = local if kind.several else local[0]
        loss = self._loss if with_loss else None
        made = getattr(pipelining, kind.torch_name)(
            stages, self._microbatches, loss_fn=loss, scale_grads=False
        )
        if not with_loss and kind.several:
            _forward_only(made)
        return made
