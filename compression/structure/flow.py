"""One traced operation, and the state that rules read and write while a model is traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...errors import ConfigError
from .labels import Factor, Labelled, tidy
from .units import Ids, Units


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number kept in a module's attribute that must follow what is removed: how many of ``ids`` are left."""

    module: str
    attribute: str
    place: int | None
    """Position in the attribute where it is a tuple or list; None where it is a plain integer."""
    ids: Ids


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operation with its arguments by the names of its schema."""

    func: Any
    given: Mapping[str, Any]
    out: Any
    module: str
    """Dotted name of the innermost module at work, "" for the model itself."""

    @property
    def name(self) -> str:
        """The operation without its overload: ``conv2d``."""
        return self.func._schema.name.removeprefix("aten::")

    @property
    def where(self) -> str:
        """For messages: the operation and the module."""
        return f"{self.name} in {self.module or 'the model itself'}"

    def __getitem__(self, argument: str) -> Any:
        return self.given[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        """The value of ``argument``, or ``default`` where this overload has none."""
        return self.given.get(argument, default)

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, lists included."""
        return [x for x in pytree.tree_leaves(dict(self.given)) if isinstance(x, Tensor)]

    def results(self) -> list[Tensor]:
        """All tensors that came out."""
        return [x for x in pytree.tree_leaves(self.out) if isinstance(x, Tensor)]

    def integers(self) -> set[int]:
        """All plain integers among the arguments, lists included."""
        return {
            x for x in pytree.tree_leaves(dict(self.given)) if isinstance(x, int) and not isinstance(x, bool)
        }


@dataclass(kw_only=True)
class Step:
    """What is remembered of one operation: the sizes to expect of it once something has been removed."""

    where: str
    name: str
    module: str
    integers: set[int]
    ins: list[Labelled]
    outs: list[Labelled]
    counts: list[tuple[str, Ids]] = field(default_factory=list)
    """(argument, ids): the argument, a plain number, says how many of these there are."""
    costs: list[tuple[Labelled, ...]] = field(default_factory=list)
    """Multiply-adds: a sum of products; each Labelled stands for the product of its sizes."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One dim of one parameter or buffer, whose entries are ``ids``."""

    name: str
    dim: int
    ids: Ids
    buffer: bool


class Flow:
    """Labels of all tensors seen so far. Tensors are told apart by id: `run` lets none go while it runs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.units = Units()
        self.owners: list[Owner] = []
        """Dims of the parameters and buffers that took part, in order of first use."""
        self.roles: dict[tuple[str, int], str] = {}
        self.steps: list[Step] = []
        self.constants: list[Constant] = []
        self.outputs: list[Labelled] = []
        self._labels: dict[int, Labelled] = {}
        self._alive: list[
            Tensor
        ] = []  # an id may not be given to another tensor while we look tensors up by it
        self._named: dict[int, tuple[str, bool]] = {}
        self._stored: set[int] = set()  # tensors that are views of buffers
        self._derived: dict[
            int, str
        ] = {}  # tensors computed from parameters and buffers alone → the parameter

    def name_tensor(self, tensor: Tensor, name: str, *, buffer: bool) -> None:
        """Say that ``tensor`` stands for the parameter or buffer ``name``; entries are numbered at first use."""
        self._named[id(tensor)] = (name, buffer)

    def parameter(self, tensor: Any) -> str | None:
        """Name of the parameter or buffer that this very tensor is."""
        known = self._named.get(id(tensor))
        return known[0] if known else None

    def stored(self, tensor: Tensor) -> bool:
        """Whether it is a parameter or buffer, or has been computed from these alone."""
        return id(tensor) in self._named or id(tensor) in self._derived

    def of(self, tensor: Tensor) -> Labelled:
        """Shape and factors of ``tensor``, tidied."""
        key = id(tensor)
        if key not in self._labels:
            if key not in self._named:
                return Labelled(tuple(tensor.shape))
            self._number(tensor, *self._named[key])
        return tidy(self.units, self._labels[key])

    def put(self, tensor: Tensor, labelled: Labelled) -> None:
        """Say what ``tensor`` is."""
        self._labels[id(tensor)] = labelled

    def role(self, tensor: Tensor | None, *roles: str) -> None:
        """The part that dims 0, 1, … of a parameter play, where nothing else has said so before.

        Also of one that has been masked or cast on the way.
        """
        name = self.parameter(tensor) or self._derived.get(id(tensor))
        for dim, role in enumerate(roles if name else ()):
            self.roles.setdefault((name or "", dim), role)

    def begin(self, call: Call) -> None:
        """The next operation: what its rule notes belongs to it."""
        ins = [self.of(tensor) for tensor in call.tensors()]
        self.steps.append(
            Step(
                where=call.where,
                name=call.name,
                module=call.module,
                integers=call.integers(),
                ins=ins,
                outs=[],
            )
        )

    def end(self, call: Call, labels: Sequence[Labelled] | None, *, is_view: bool) -> None:
        """Its results and their labels, None where nothing in them is labelled.

        What is computed from buffers alone, such as the angles of a rotary embedding, is a constant of the model:
        its sizes are rigid. A buffer itself may follow a parameter that it is multiplied with, as masks do.
        """
        results = call.results()
        self._derive(call, results)
        sources = {id(x) for x in call.tensors() if self.of(x).factors}
        if sources <= self._stored:
            if is_view:
                self._stored.update(id(x) for x in results)
            else:
                labels = None
        for result, labelled in zip(results, labels or (), strict=bool(labels)):
            if labelled.shape != tuple(result.shape):
                raise ConfigError(
                    f"structure: {call.where} gives {list(result.shape)} where its rule expects {list(labelled.shape)};"
                    " report this with the model"
                )
            self.put(result, labelled)
        self.steps[-1].outs.extend(self.of(result) for result in results)
        for result, known in zip(results, self.steps[-1].outs, strict=True):
            if known.shape != tuple(result.shape):  # changed in place by an operation without a rule
                raise ConfigError(
                    f"structure: {call.where} changes the shape of a tensor in place; let it make a new one"
                )

    def count(self, call: Call, argument: str, ids: Ids) -> None:
        """The number given as ``argument`` says how many of ``ids`` there are, and so does a module's attribute."""
        self.steps[-1].counts.append((argument, ids))
        if vars(self.module(call.module)).get(argument) == call[argument]:
            self.follow(call.module, argument, ids)

    def pay(self, *parts: Labelled) -> None:
        """The operation takes as many multiply-adds as the product of all sizes of ``parts``."""
        self.steps[-1].costs.append(parts)

    def follow(self, module: str, attribute: str, ids: Ids, place: int | None = None) -> None:
        """The attribute holds how many of ``ids`` there are."""
        self.constants.append(Constant(module=module, attribute=attribute, place=place, ids=ids))

    def module(self, name: str) -> nn.Module:
        """The module of that dotted name."""
        return self.model.get_submodule(name)

    def _derive(self, call: Call, results: Sequence[Tensor]) -> None:
        inputs = call.tensors()
        names = {id(x): self._derived.get(id(x)) or self.parameter(x) for x in inputs}
        if not inputs or not all(names.values()):
            return
        for result in results:
            same = [x for x in inputs if x.shape == result.shape]
            weights = [names[id(x)] for x in same if not self._named.get(id(x), ("", False))[1]]
            self._derived[id(result)] = (weights or list(names.values()))[0] or ""

    def _number(self, tensor: Tensor, name: str, buffer: bool) -> None:
        factors = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                ids = self.units.new(size)
                factors.append(Factor((dim,), ids))
                self.owners.append(Owner(name=name, dim=dim, ids=ids, buffer=buffer))
        self._labels[id(tensor)] = Labelled(tuple(tensor.shape), tuple(factors))
        if buffer:
            self._stored.add(id(tensor))


Rule = Callable[[Flow, Call], "Labelled | Sequence[Labelled] | None"]
"""Labels of the results, in order; None for results in which nothing is labelled."""
