"""The techniques of one phase at work: who is called when, projections, checks, and the state that is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import NoOpError
from .registry import name_of
from .run import Run
from .technique import Check, Technique
from .weight import Weight

_DENSE = ("", "dense")  # the state key of the dense copies, which belong to no single technique


class Chain:
    """Calls the techniques in list order; the whole contract between a training loop and compression.

    In a loop of your own::

        chain = Chain([Magnitude(sparsity=0.8)], Run(weights_of(dict(model.named_parameters())), steps=1000))
        for batch in loader:
            chain.before_step(learning_rate)
            loss = chain.add_loss(outputs, batch, loss)
            loss.backward()
            chain.after_backward()
            chain.before_update()
            optimizer.step()
            chain.after_step()
            optimizer.zero_grad()
    """

    def __init__(self, techniques: Sequence[Technique], run: Run) -> None:
        self.techniques = list(techniques)
        self.run = run
        self._scopes = [f"{i}.{name_of(type(t))}" for i, t in enumerate(self.techniques)]
        self._divided = [w for w in run.all_weights if w.tensor is not w.parameter]
        # A call that a technique does not define must cost nothing in every step.
        self._calls = {
            call: [
                (scope, getattr(t, call))
                for scope, t in zip(self._scopes, self.techniques, strict=True)
                if getattr(type(t), call) is not getattr(Technique, call)
            ]
            for call in ("before_step", "add_loss", "after_backward", "after_step", "checks")
        }

    def before_step(self, learning_rate: float = 0.0) -> None:
        """A new optimizer step begins."""
        self.run.step += 1
        self.run.learning_rate = learning_rate
        self._each("before_step")

    def add_loss(self, outputs: Any, batch: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """The loss with all terms that need outputs."""
        for scope, add_loss in self._calls["add_loss"]:
            self.run.scope = scope
            loss = add_loss(self.run, outputs, batch, loss)
        return loss

    def after_backward(self) -> None:
        """Gradients of the global batch are there: penalties go in, masked ones go out."""
        for weight in self._divided:
            weight.take_grad()
        if self._calls["after_backward"]:
            with torch.no_grad():
                self._each("after_backward")

    def before_update(self) -> None:
        """Dense values go back into place, so that the optimizer moves them and not the working ones."""
        for weight in self.run.all_weights:
            if weight.projected:
                weight.restore_dense()

    def after_step(self) -> None:
        """Weights have moved: masks are renewed and working values written."""
        if self._calls["after_step"]:
            with torch.no_grad():
                self._each("after_step")

    def _each(self, call: str) -> None:
        for scope, function in self._calls[call]:
            self.run.scope = scope
            function(self.run)

    def finish(self) -> None:
        """The phase ends: working values become the only ones."""
        for weight in self.run.all_weights:
            weight.forget_dense()

    # ── requested against achieved

    def checks(self) -> dict[str, list[Check]]:
        """Every technique's lines, by its place and name. Collective."""
        lines = {scope: [] for scope in self._scopes}
        with torch.no_grad():
            for scope, checks in self._calls["checks"]:
                self.run.scope = scope
                lines[scope] = checks(self.run)
        return lines

    def demand(self) -> dict[str, list[Check]]:
        """`checks`, raising NoOpError where something that was requested has not happened."""
        lines = self.checks()
        broken = [(scope, c) for scope, checks in lines.items() for c in checks if not c.holds]
        if broken:
            raise NoOpError(
                "\n".join(
                    f"step {self.run.step}: technique {scope} requested {c.quantity} {c.requested:.6g} but the"
                    f" model has {c.achieved:.6g}; it does not act on the weights that the model computes with"
                    for scope, c in broken
                )
            )
        return lines

    # ── state

    def tensors(self) -> dict[str, tuple[Weight, Tensor]]:
        """All saved tensors: key → (the weight that it is placed like, local tensor)."""
        by_name = {w.name: w for w in self.run.all_weights}
        saved = {
            f"{scope}/{key}/{name}": (by_name[name], tensor)
            for (scope, key), store in self.run.buffers.items()
            for name, tensor in store.items()
        }
        for weight in self.run.all_weights:
            if weight.projected:
                saved[f"{_DENSE[0]}/{_DENSE[1]}/{weight.name}"] = (weight, weight.dense)
        return saved

    def state(self) -> dict[str, Any]:
        """The JSON part of the state, equal on all ranks but for ``notes``, which each stage has for its weights."""
        return {"step": self.run.step, "memories": self.run.memories, "notes": self.run.notes}

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` and `tensors` gave; ``tensors``: key → local tensor for this mesh."""
        self.run.step = state["step"]
        self.run.memories = {scope: dict(memory) for scope, memory in state["memories"].items()}
        self.run.notes = {
            scope: {n: dict(v) for n, v in notes.items()} for scope, notes in state["notes"].items()
        }
        self.run.buffers = {}
        by_name = {w.name: w for w in self.run.all_weights}
        for key, tensor in tensors.items():
            scope, kind, name = key.split("/", 2)
            if (scope, kind) == _DENSE:
                by_name[name].set_dense(tensor)
            else:
                self.run.buffers.setdefault((scope, kind), {})[name] = tensor
