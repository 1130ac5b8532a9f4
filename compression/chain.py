"""The techniques of one phase at work: who is called when, projections, checks, and the state that is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import NoOpError
from .placement import Reduced
from .registry import name_of
from .run import Run
from .technique import Check, Technique
from .weight import Weight

_DENSE = ("", "dense")  # the state key of the dense copies, which belong to no single technique


class Chain:
    """Calls the techniques in list order; the whole contract between a training loop and compression.

    In a loop of your own::

        chain = Chain([Magnitude(sparsity=0.8)], Run(weights_of(dict(model.named_parameters())), steps=1000))
        chain.set_up()
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
            for call in (
                "set_up",
                "before_step",
                "add_columns",
                "add_loss",
                "after_backward",
                "after_step",
                "checks",
            )
        }

    @property
    def trains(self) -> bool:
        """False where all techniques only look: the phase then runs forward passes and moves nothing."""
        asked = [t.trains for t in self.techniques if t.trains is not None]
        return not asked or any(asked)

    def set_up(self) -> None:
        """The model stands: techniques hook what they watch. Once, before `load`."""
        self._each("set_up")

    def before_step(self, learning_rate: float = 0.0) -> None:
        """A new optimizer step begins."""
        self.run.step += 1
        self.run.learning_rate = learning_rate
        self.run.attached.clear()
        self._each("before_step")
        self.run.in_step = True

    def add_columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The step's rows with what techniques add to them. Collective."""
        held = dict(columns)
        for scope, add_columns in self._calls["add_columns"]:
            self.run.scope = scope
            held = add_columns(self.run, held)
        return held

    def add_loss(self, outputs: Any, batch: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """The loss with all terms that need outputs."""
        for scope, add_loss in self._calls["add_loss"]:
            self.run.scope = scope
            loss = add_loss(self.run, outputs, batch, loss)
        return loss

    def after_backward(self) -> None:
        """Gradients of the global batch are there: penalties go in, masked ones go out."""
        self.run.in_step = False
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
        """The phase ends: working values become the only ones, and nobody watches modules any more."""
        self.run.unhook()
        if self.run.teacher is not None:
            self.run.teacher.close()
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

    def tensors(self) -> dict[str, tuple[Weight | Reduced, Tensor]]:
        """All saved tensors: key → (what places it on the mesh, local tensor)."""
        saved: dict[str, tuple[Weight | Reduced, Tensor]] = {}
        for index, scope in enumerate(self._scopes):
            saved |= {
                f"{scope}/{key}/{name}": held
                for (owner, key) in self.run.buffers
                if owner == scope
                for name, held in self.buffers(index, key).items()
            }
        for weight in self.run.all_weights:
            if weight.projected:
                saved[f"{_DENSE[0]}/{_DENSE[1]}/{weight.name}"] = (weight, weight.dense)
        return saved

    def buffers(self, index: int, key: str) -> dict[str, tuple[Weight | Reduced, Tensor]]:
        """One technique's buffers of that key: parameter name → (what places it on the mesh, local tensor)."""
        by_name = {w.name: w for w in self.run.all_weights}
        scope, held = self._scopes[index], {}
        for name, tensor in self.run.buffers.get((scope, key), {}).items():
            sizes = self.run.sizes.get((scope, key, name))
            held[name] = (by_name[name].reduced(sizes) if sizes else by_name[name], tensor)
        return held

    def empty(
        self, key: str, shape: Sequence[int], dtype: torch.dtype
    ) -> tuple[Weight | Reduced, Tensor] | None:
        """Room for a saved tensor of this global shape, as `tensors` names it; None where its weight is not held."""
        scope, kind, name = key.split("/", 2)
        weight = next((w for w in self.run.all_weights if w.name == name), None)
        if weight is None:
            return None
        sizes = {dim: size for dim, size in enumerate(shape) if size != weight.shape[dim]}
        placed = weight.reduced(sizes)
        self.run.sizes[(scope, kind, name)] = sizes
        room = torch.zeros(placed.shape(weight.local), dtype=dtype, device=weight.local.device)
        return (placed if sizes else weight), room

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
                continue
            self.run.buffers.setdefault((scope, kind), {})[name] = tensor
            weight = by_name[name]
            if weight.tensor is weight.parameter:  # whole here; of a part, `empty` has been asked before
                changed = {dim: size for dim, size in enumerate(tensor.shape) if size != weight.shape[dim]}
                self.run.sizes[(scope, kind, name)] = changed
