"""Run a model once on tensors without values, with a look at every operation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import ConfigError, ForgepressError
from .flow import Call

Look = Callable[[Call], None]
"""Called after each operation, with what came out."""


class Operations(TorchDispatchMode):
    """Calls ``look`` for every operation that ``knows`` says is known; torch takes the others apart where it can.

    In inference mode operations arrive here as models write them: ``linear``, not the products it is made of.
    """

    def __init__(self, look: Look, knows: Callable[[Any], bool], where: Callable[[], str]) -> None:
        super().__init__()
        self._look, self._knows, self._where = look, knows, where
        # Kept until the end: an id must not be given to a second tensor, and torch detaches what is held elsewhere,
        # so that all runs of one model must hold the same to be compared step by step.
        self._alive: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operation: taken apart, or done and looked at."""
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks a tensor for its device or layout
            return func(*args, **kwargs)
        if not self._knows(func):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        try:
            out = func(*args, **kwargs)
        except ForgepressError:
            raise
        except Exception as error:
            name = func._schema.name.removeprefix("aten::")
            raise Untraceable(name, self._where(), error) from error
        self._alive.append(out)
        self._look(Call(func=func, given=_bound(func, args, kwargs), out=out, module=self._where()))
        return out


class Untraceable(ConfigError):
    """An operation that cannot be followed without values, or fails."""

    def __init__(self, operation: str, module: str, cause: BaseException) -> None:
        self.where = f"{operation} in {module or 'the model itself'}"
        self.module = module
        first = str(cause).strip().splitlines()
        self.cause = f"{type(cause).__name__}: {first[0] if first else ''}"
        super().__init__(
            f"structure: {self.where} cannot be traced ({self.cause}); what is removed must follow from shapes alone:"
            " let it not depend on values, or leave structured removal out for this model"
        )


def run(
    model: nn.Module,
    example: Any,
    look: Look,
    *,
    knows: Callable[[Any], bool],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    named: Callable[[Tensor, str, bool], None] | None = None,
    entered: Callable[[str, Any], None] | None = None,
    left: Callable[[str, Any], None] | None = None,
) -> Any:
    """The outputs of ``model`` on ``example``: fake tensors, nothing is computed and the model is not touched.

    example: one tensor, a tuple of positional inputs or a dict of named ones; only shapes and dtypes count.
    shapes:  other shapes for parameters and buffers, to see what a cut model would do.
    named:   told (fake tensor, name, is buffer) for every parameter and buffer.
    entered: told (module name, its inputs) before each module's forward; ``left`` (name, outputs) after it.
    raises:  ConfigError naming the operation and module that cannot be followed.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    stack: list[str] = []
    failed: list[str] = []
    with fake:
        state = {n: _empty(t, (shapes or {}).get(n)) for n, t in named_tensors(model)}
        args, kwargs = _arguments(pytree.tree_map_only(Tensor, _empty, example))
    buffers = {name for name, _ in model.named_buffers()}
    for name, tensor in state.items():
        if named:
            named(tensor, name, name in buffers)
    operations = Operations(look, knows, lambda: stack[-1] if stack else "")
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation would hide the parts of a layer
    try:
        with torch.inference_mode(), _watched(model, stack, failed, entered, left), fake, operations:
            return functional_call(model, state, args, kwargs)
    except ForgepressError:
        raise
    except Exception as error:
        raise Untraceable("the forward pass", failed[0] if failed else "", error) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, tied ones once."""
    return [*model.named_parameters(), *model.named_buffers()]


def tensors_of(outputs: Any) -> list[Tensor]:
    """All tensors in what a model gave: dicts, lists, tuples and dataclass-like outputs of libraries."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [t for item in outputs for t in tensors_of(item)] if isinstance(outputs, (list, tuple)) else []


def _empty(like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    made = torch.empty(like.shape if shape is None else shape, dtype=like.dtype)
    return nn.Parameter(made, requires_grad=False) if isinstance(like, nn.Parameter) else made


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def _bound(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = {}
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            given[argument.name] = args[place]
        elif argument.name in kwargs:
            given[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            given[argument.name] = argument.default_value
    return given


@contextmanager
def _watched(
    model: nn.Module,
    stack: list[str],
    failed: list[str],
    entered: Callable[[str, Any], None] | None,
    left: Callable[[str, Any], None] | None,
) -> Iterator[None]:
    """``stack`` holds the names of the modules whose forward is at work, ``failed`` those left by an exception."""
    names = {id(module): name for name, module in model.named_modules()}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        stack.append(names[id(module)])
        if entered:
            entered(stack[-1], (args, kwargs))

    def after(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        if outputs is None and sys.exc_info()[0] is not None:
            failed.append(stack[-1])
        elif left:
            left(stack[-1], outputs)
        stack.pop()

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
