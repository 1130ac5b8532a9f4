"""Parameters that several pipeline stages compute with: one of them has it, the others follow."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .mesh import Mesh
from .whole import divided_as, is_divided

Read = Callable[[nn.Parameter], Tensor]
Write = Callable[[Tensor, nn.Parameter], object]


@dataclass(frozen=True)
class Tie:
    """One parameter: its names in the whole model, and the stages that compute with it, the owner first."""

    aliases: tuple[str, ...]
    stages: tuple[int, ...]


def find_ties(model: nn.Module, users: Mapping[str, Sequence[int]]) -> list[Tie]:
    """The parameters of `model` that stages share.

    users: parameter, under all its names → the stages that compute with it.   The owner is the lowest of them.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    ties = []
    for aliases in names.values():
        stages = sorted({stage for name in aliases for stage in users.get(name, ())})
        if len(stages) > 1:
            ties.append(Tie(tuple(aliases), tuple(stages)))
    return ties


class Followers:
    """Keeps the copies of tied parameters equal to their owners', and adds their gradients to the owners'."""

    def __init__(
        self, ties: Iterable[Tie], parts: Mapping[int, nn.Module], homes: Sequence[int], mesh: Mesh
    ) -> None:
        """parts: stage → what is held here of it, divided already.   homes: stage → its pipeline rank."""
        self._ties, self._parts, self._homes = list(ties), parts, homes
        self._here = mesh.coordinates["pipeline"]
        self._group = mesh.axes("pipeline").get_group()
        self.loans = {(stage, name) for tie in self._ties for stage in tie.stages[1:] for name in tie.aliases}

    @torch.no_grad()
    def follow(self) -> None:
        """Before a forward: the owner's values for all. cost: one message of the parameter per follower."""
        for tie in self._ties:
            for stage in tie.stages[1:]:
                self._carry(tie, tie.stages[0], stage, _local, lambda x, p: _local(p).copy_(x))

    @torch.no_grad()
    def give_back(self) -> None:
        """After the last backward: followers' gradients are added to the owner's. cost: as `follow`."""
        for tie in self._ties:
            for stage in tie.stages[1:]:
                self._carry(tie, stage, tie.stages[0], _gradient, _add_gradient)
                if stage in self._parts:
                    self._parameter(tie, stage).grad = None

    def _parameter(self, tie: Tie, stage: int) -> nn.Parameter:
        held = dict(self._parts[stage].named_parameters(remove_duplicate=False))
        return next(held[name] for name in tie.aliases if name in held)

    def _carry(self, tie: Tie, source: int, target: int, read: Read, write: Write) -> None:
        at, to = self._homes[source], self._homes[target]
        if self._here == at == to:
            write(read(self._parameter(tie, source)), self._parameter(tie, target))
        elif self._here == at:
            x = read(self._parameter(tie, source)).contiguous()
            dist.send(x, group=self._group, group_dst=to)
        elif self._here == to:
            parameter = self._parameter(tie, target)
            x = torch.empty_like(_local(parameter), memory_format=torch.contiguous_format)
            dist.recv(x, group=self._group, group_src=at)
            write(x, parameter)


def own_copy(part: nn.Module, tie: Tie) -> None:
    """Make the tied parameter of `part` its own, under all its names: another stage may live in this process."""
    held = {name for name, _ in part.named_parameters(remove_duplicate=False)}
    copy: nn.Parameter | None = None
    for name in tie.aliases:
        if name in held:
            old = part.get_parameter(name)
            if copy is None:
                copy = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
            parent, _, key = name.rpartition(".")
            part.get_submodule(parent)._parameters[key] = copy


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if is_divided(tensor) else tensor).detach()


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    return torch.zeros_like(_local(parameter)) if gradient is None else _local(gradient)


def _add_gradient(x: Tensor, parameter: nn.Parameter) -> None:
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = divided_as(x.clone(), parameter)  # type: ignore[assignment]
    else:
        _local(parameter.grad).add_(x)
