"""Stages of a model whose forward is more than the composition of its modules: the forward runs on every stage."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from .layout import Links
from .microbatches import InHand
from .shadow import share_tensors


class _Reached(Exception):
    """The model's forward has come to a module of the next stage."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


class _Received:
    """What the stage before has sent, and zeros like it for what runs on nothing."""

    x: Tensor
    nothing: Tensor


def make_linked_part(
    model: nn.Module, names: Sequence[str], links: Links, now: InHand
) -> tuple[nn.Module, set[str]]:
    """A stage of the links `names`, and which modules in it are other stages' or run on nothing.

    The tree, the names and the parameters are those of `model`. Its forward takes one tensor, [rows, …], and asks
    `now` for the micro-batch's inputs. Links of earlier stages give zeros, the first one here gets what was
    received, and the first one of the next stage ends the forward; other stages' parameters are zeros without memory.
    """
    part = share_tensors(model, lambda tensor: tensor)
    first = links.names.index(names[0])
    end = first + len(names)
    received, elsewhere = _Received(), set()
    for number, name in enumerate(links.names):
        module = part.get_submodule(name)
        if number < first:
            module.forward = _before(received, links.lengths[name])
        elif number >= end:
            module.forward = _after
        else:
            continue
        elsewhere |= {f"{name}.{inner}".rstrip(".") for inner, _ in module.named_modules()}
        _drop_buffers(module)
    if first:
        entry = part.get_submodule(names[0])
        entry.register_forward_pre_hook(lambda _, args: (received.x, *args[1:]))
    elsewhere |= _drop_parameters(part, links, range(first, end))
    plain = part.forward

    def forward(x: Tensor) -> Tensor:
        received.x, received.nothing = x, torch.zeros_like(x)
        inputs = now.inputs(now.columns)
        try:
            outputs = plain(**inputs) if isinstance(inputs, Mapping) else plain(inputs)
        except _Reached as reached:
            return sendable(reached.x)
        finally:
            del received.x, received.nothing
        return outputs_of(outputs)

    part.forward = forward
    return part, elsewhere


def _before(received: _Received, length: int) -> Callable[..., Any]:
    """In the place of a link that has run on an earlier stage."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = received.nothing
        return (x, *[None] * (length - 1)) if length else x

    return forward


def _after(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """In the place of a link of a later stage: this one is done."""
    raise _Reached(x)


def _drop_buffers(module: nn.Module) -> None:
    """Other stages' statistics are no buffers here; what reads their shape or dtype still finds them."""
    for owner in module.modules():
        for key, buffer in list(owner._buffers.items()):
            del owner._buffers[key]
            owner.__dict__[key] = buffer


def _drop_parameters(part: nn.Module, links: Links, here: Collection[int]) -> set[str]:
    """Put zeros where other stages' parameters were; returns the modules that had them (not those around links)."""
    around = {name.rpartition(".")[0] for name in links.names}
    around |= {parent for name in around for parent in _parents(name)}
    bare: set[str] = set()
    for owner_name, owner in list(part.named_modules()):
        for key, parameter in list(owner._parameters.items()):
            users = links.users.get(f"{owner_name}.{key}".strip("."), ())
            if parameter is None or not users or any(user in here for user in users):
                continue
            del owner._parameters[key]
            owner.__dict__[key] = parameter.detach().new_zeros(()).expand(parameter.shape)
            if owner_name not in around:
                bare.add(owner_name)
    for name in bare:
        if isinstance(part.get_submodule(name), _BatchNorm):  # statistics would be of nothing
            part.get_submodule(name).forward = lambda x: x
    return bare


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]


def sendable(x: Tensor) -> Tensor:
    """`x` as gloo sends it, contiguous, and as torch's split backward wants it, not a view."""
    x = x.contiguous()
    return x.clone() if x._is_view() else x


def outputs_of(outputs: Any) -> Tensor:
    """The one tensor that the last stage gives: the logits. raises: ConfigError where there is none."""
    found = getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"pipeline: the model gives a {type(outputs).__name__}; its last stage must give one tensor (or .logits)"
        )
    return found


class LinkedShadow:
    """The shapes that go into each link and come out at the end, found without computing or communicating."""

    def __init__(self, model: nn.Module, links: Links) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._model = share_tensors(model, self._mode.from_tensor).eval()
        self._links = links

    def run(self, inputs: Any) -> list[Tensor]:
        """inputs: what the model is called with, one micro-batch of it, real.   returns: links + 1 shapes."""
        flow: list[Tensor] = []
        handles = [
            self._model.get_submodule(name).register_forward_pre_hook(lambda _, args: flow.append(args[0]))
            for name in self._links.names
        ]
        try:
            with self._mode:
                if isinstance(inputs, Mapping):
                    fake = {name: self._mode.from_tensor(x) for name, x in inputs.items()}
                    outputs = self._model(**fake)
                else:
                    outputs = self._model(self._mode.from_tensor(inputs))
        finally:
            for handle in handles:
                handle.remove()
        return [*flow, outputs_of(outputs)]
