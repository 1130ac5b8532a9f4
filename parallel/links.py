"""Where a model may be cut into stages, found by running it once on shapes: no order has to be given by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .layout import Links
from .shadow import share_tensors


@dataclass
class _Call:
    name: str
    start: int
    end: int
    taken: Any
    given: Any
    length: int
    weight: int


def find_links(model: nn.Module, call: Callable[[nn.Module, FakeTensorMode], Any]) -> Links | None:
    """The finest cut of `model` that is right; None where there is none.

    call: runs the model it gets on example inputs that it makes in the mode it gets.
    raises: whatever the model raises on shapes alone.   cost: two forwards and one backward without numbers.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shadow = share_tensors(model, mode.from_tensor).eval()
    for parameter in shadow.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    calls = _calls(shadow, lambda: call(shadow, mode), mode)
    while len(chain := _longest(calls)) > 1:
        users, costs, crossing = _segments(shadow, chain, lambda: call(shadow, mode), mode)
        if not crossing:
            return Links(
                names=tuple(one.name for one in chain),
                lengths={one.name: one.length for one in chain},
                users=users,
                costs=tuple(costs),
            )
        calls = _without(calls, chain, crossing)
    return None


def _without(calls: list[_Call], chain: list[_Call], crossing: set[tuple[int, int]]) -> list[_Call]:
    """The calls between which cuts are left when a tensor goes from segment to segment past those in between.

    A residual connection inside of a block leaves the block whole; one that no module encloses forbids its cuts.
    """
    banned: set[int] = set()
    for first, last in crossing:
        start, end = chain[first].start, chain[last].end
        around = [one for one in calls if one.start <= start and one.end >= end and one is not chain[first]]
        if around:
            least = min(around, key=lambda one: one.end - one.start)
            banned |= {id(one) for one in calls if one.start > least.start and one.end < least.end}
        else:
            banned |= {id(one) for one in chain[first + 1 : last + 1]}
    return [one for one in calls if id(one) not in banned]


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
        return value[0]
    return None


def _calls(model: nn.Module, run: Callable[[], Any], mode: FakeTensorMode) -> list[_Call]:
    """All calls of modules that are called once, with one tensor in front and one out."""
    clock, calls, handles = iter(range(1 << 40)), {}, []

    def watch(name: str, module: nn.Module) -> None:
        weight = sum(p.numel() for p in module.parameters())

        def before(_: nn.Module, args: Any) -> None:
            taken = args[0] if args and isinstance(args[0], Tensor) else None
            calls.setdefault(name, []).append(_Call(name, next(clock), -1, taken, None, 0, weight))

        def after(_: nn.Module, args: Any, output: Any) -> None:
            one = calls[name][-1]
            one.end, one.given = next(clock), _first_tensor(output)
            one.length = 0 if isinstance(output, Tensor) else len(output) if isinstance(output, tuple) else -1

        handles.extend((module.register_forward_pre_hook(before), module.register_forward_hook(after)))

    for name, module in model.named_modules():
        if name and not getattr(module, "inplace", False):  # what a stage receives must not be written to
            watch(name, module)
    with mode, torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    once = [made[0] for made in calls.values() if len(made) == 1]
    return [one for one in once if one.taken is not None and one.given is not None and one.length >= 0]


def _longest(calls: list[_Call]) -> list[_Call]:
    """The chain of calls, each taking the very tensor that the one before gave, with most parameters, then members."""
    calls = sorted(calls, key=lambda one: one.start)
    takers: dict[int, list[int]] = {}
    for number, one in enumerate(calls):
        takers.setdefault(id(one.taken), []).append(number)
    best: list[tuple[int, int, int]] = [(one.weight, 1, -1) for one in calls]  # (parameters, members, before)
    for number, one in enumerate(calls):
        for after in takers.get(id(one.given), []):
            if calls[after].start > one.end:
                longer = (best[number][0] + calls[after].weight, best[number][1] + 1, number)
                best[after] = max(best[after], longer)
    if not calls:
        return []
    # A single call is no chain, however heavy: an embedding, say, to whose output positions are added.
    at, chain = max(range(len(calls)), key=lambda number: (best[number][1] > 1, *best[number][:2])), []
    while at >= 0:
        chain.append(calls[at])
        at = best[at][2]
    return chain[::-1]


def _segments(
    model: nn.Module, chain: list[_Call], run: Callable[[], Any], mode: FakeTensorMode
) -> tuple[dict[str, tuple[int, ...]], list[float], set[tuple[int, int]]]:
    """Which segment of the chain uses which parameter, the FLOPs of each, and from where to where tensors pass cuts
    beside the chain."""
    ends: list[Tensor] = []  # what each segment hands on
    starts: list[Tensor] = []  # what each but the first begins with
    flops: list[float] = [0.0]
    counter = FlopCounterMode(display=False)
    handles = []

    def cut(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ends.append(args[0])
        starts.append(args[0].detach().requires_grad_())
        flops.append(float(counter.get_total_flops()))
        return (starts[-1].clone(), *args[1:])  # a clone may be written to

    called: dict[str, set[int]] = {}  # of modules without children: in which segments they run

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.setdefault(name, set()).add(len(ends))

    for one in chain[1:]:
        handles.append(model.get_submodule(one.name).register_forward_pre_hook(cut))
    for name, module in model.named_modules():
        if not module._modules:
            handles.append(module.register_forward_pre_hook(note(name)))
    with mode, torch.enable_grad(), counter:
        outputs = run()
        flops.append(float(counter.get_total_flops()))
    for handle in handles:
        handle.remove()
    last = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        tensors[id(parameter)] = parameter
    wanted = [*tensors.values(), *starts]
    users: dict[str, tuple[int, ...]] = {name: () for each in names.values() for name in each}
    crossing: set[tuple[int, int]] = set()
    with mode:
        for number, given in enumerate([*([end] for end in ends), last]):
            given = [tensor for tensor in given if tensor.requires_grad]
            if not given:
                continue
            ones = [torch.ones_like(tensor) for tensor in given]
            found = torch.autograd.grad(given, wanted, ones, allow_unused=True, retain_graph=True)
            for key, gradient in zip(tensors, found, strict=False):
                for name in names[key] if gradient is not None else []:
                    users[name] = (*users[name], number)
            for start, gradient in enumerate(found[len(tensors) :], start=1):
                if gradient is not None and start != number:
                    crossing.add((start, number))
    for aliases in names.values():
        runs = {name.rpartition(".")[0] for name in aliases}
        where = set().union(*(called.get(name, set()) for name in runs))
        if where and all(not model.get_submodule(name)._modules for name in runs):
            crossing |= {(min(where), number) for number in users[aliases[0]] if number not in where}
    return users, [after - before for before, after in pairwise(flops)], crossing
