"""Residual blocks: modules that add something to what comes in, and may therefore go as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from .flow import Call, Flow
from .graph import Block
from .labels import Labelled

_PRODUCTS = {"linear", "addmm", "matmul", "mm", "bmm", "convolution", "conv1d", "conv2d", "conv3d"}


class Paths:
    """Follows, for each module at work, its first input along additions and operations that keep its labels."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._open: list[tuple[str, Tensor | None, set[int]]] = []
        self._found: dict[str, tuple[str, Labelled, Labelled]] = {}
        self._often: set[str] = set()
        self._added: set[int] = set()

    def entered(self, name: str, inputs: Any) -> None:
        """A module begins: its first tensor is what may pass it by."""
        args, kwargs = inputs
        first = next((x for x in [*args, *kwargs.values()] if isinstance(x, Tensor)), None)
        self._open.append((name, first, set() if first is None else {id(first)}))

    def look(self, call: Call) -> None:
        """An operation: its result carries what its input carries; of several activations only a sum does.

        A gate scales what passes it: without it, something else would go on.
        """
        if call.name in _PRODUCTS:
            return
        active = {id(x) for x in call.tensors() if not self._flow.stored(x)}
        if len(active) > 1 and call.name not in ("add", "add_"):
            return
        for _, _, carriers in self._open:
            if active & carriers:
                carriers.update(id(x) for x in call.results())

    def left(self, name: str, outputs: Any) -> None:
        """A module ends: a block if its output still carries its input, in the same form and units."""
        _, first, carriers = self._open.pop()
        stream = outputs if isinstance(outputs, Tensor) else None
        kind = "tensor"
        if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], Tensor):
            stream, kind = outputs[0], "tuple" if isinstance(outputs, tuple) else "list"
        if first is None or stream is None or id(stream) not in carriers or first is stream:
            return
        self._often.update({name} & self._found.keys())
        self._found[name] = (kind, self._flow.of(first), self._flow.of(stream))

    def blocks(self) -> list[Block]:
        """Entries of module lists and sequences that qualify, innermost ones, in the order of the model."""
        names = [name for name in self._found if name not in self._often and self._qualifies(name)]
        innermost = [n for n in names if not any(other.startswith(f"{n}.") for other in names)]
        order = {name: number for number, (name, _) in enumerate(self._flow.model.named_modules())}
        return [self._block(name) for name in sorted(innermost, key=order.__getitem__)]

    def _qualifies(self, name: str) -> bool:
        parent = self._flow.module(name.rpartition(".")[0])
        _, come, go = self._found[name]
        return (
            bool(name)
            and isinstance(parent, (nn.ModuleList, nn.Sequential))
            and any(p.ndim > 1 for p in self._flow.module(name).parameters())
            and come.shape == go.shape
            and bool(come.factors)
            and [f.dims for f in come.factors] == [f.dims for f in go.factors]
            and all(
                np.array_equal(self._flow.units.find(a.ids), self._flow.units.find(b.ids))
                for a, b in zip(come.factors, go.factors, strict=True)
            )
        )

    def _block(self, name: str) -> Block:
        inside = {id(p): p for p in self._flow.module(name).parameters()}
        for other, parameter in self._flow.model.named_parameters(remove_duplicate=False):
            if not other.startswith(f"{name}."):
                inside.pop(id(parameter), None)
        return Block(
            name=name,
            parameters=sum(p.numel() for p in inside.values()),
            returns=self._found[name][0],  # type: ignore[arg-type]
        )
