"""The `Run`: all that a technique sees of the training run it works in."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attach import attach
from .matching import matching_names, scales_of
from .placement import Reduced
from .quantile import exact_quantile
from .weight import Weight

Reduce = Callable[[Tensor, str], Tensor]
"""Combine a tensor (``sum`` or ``max``) over all ranks that hold other weights: shards, tensor parts, stages."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Which places of each row are here: one of so many pieces of equal length.

    places: length L → int64 [L], where in the whole row those here stand.
    gather: [rows, L, W] of the places here → [rows, T, W] of all in order, with gradients (None: they are all here).
    """

    pieces: int = 1
    places: Callable[[int], Tensor] = torch.arange
    gather: Callable[[Tensor], Tensor] | None = None


class Now:
    """The micro-batch in hand, for a loop without an engine that says so."""

    columns: Mapping[str, Tensor] = {}
    valid: Tensor | None = None
    seed = 1.0  # what the loss's backward starts from


def _alone(x: Tensor, operation: str) -> Tensor:
    return x


class Run:
    """Where the run stands, its weights, sums over the mesh, and a technique's saved state.

    step:  optimizer step within the phase, counted from 1 while a step is worked on (0 before the first).
    steps: optimizer steps that the phase will take.
    learning_rate: that of the present step, for proximal forms.

    modules: the modules held on this rank by their global names, for hooks (absent: on another pipeline stage).
    in_step: True from the step's begin until its gradients are there; hooks do nothing outside (evaluation).
    now:    the micro-batch in hand, inside hooks and ``add_loss``: ``now.columns``, ``now.valid`` (None: all real).
    rows, items: real rows, and loss items (rows or tokens), of the whole global batch: a local sum divided by one
            of them adds up to the global mean over micro-batches and ranks.
    copies: ranks along the tensor axis: as many see the same values of an activation, where they do not have a part
            of its features each. By that a sum `over_rows` counts such values too often.
    piece:  which places (tokens) of each row are here, where ranks share a row.

    For a loop of your own: ``Run(weights_of(dict(model.named_parameters())), steps=1000)``.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        *,
        steps: int,
        seed: int = 0,
        reduce: Reduce | None = None,
        modules: Mapping[str, nn.Module] | None = None,
        over_rows: Reduce | None = None,
        now: Any = None,
        teacher: Any = None,
        items_mask: Callable[[Mapping[str, Tensor], Tensor | None, Tensor], Tensor] | None = None,
        copies: int = 1,
        piece: Piece | None = None,
        whole: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> None:
        """reduce, over_rows: how to combine over other ranks (None: this process is alone); see the calls below.
        teacher: whom techniques of distillation ask: a `Teacher`, or a function of their ``teacher`` that gives one.
        items_mask: see `items_mask` (None: every place of a real row counts).
        whole: see `whole` (None: outputs are whole).
        """
        self.all_weights = list(weights)
        self.steps = steps
        self.seed = seed
        self.step = 0
        self.learning_rate = 0.0
        self.reduce: Reduce = reduce or _alone
        self.modules: dict[str, nn.Module] = dict(modules or {})
        self.now = now if now is not None else Now()
        self.in_step = False
        self.rows = 1.0
        self.items: float | Tensor = 1.0
        self.copies = copies
        self.piece = piece or Piece()
        self.loss_scale: float | Tensor = 1.0  # of float16 training
        self.attached: dict[str, Tensor] = {}
        self.teacher = teacher
        self._items_mask, self._whole = items_mask, whole
        self._over_rows: Reduce = over_rows or _alone
        self._hooks: list[Any] = []
        self.buffers: dict[tuple[str, str], dict[str, Tensor]] = {}
        self.sizes: dict[
            tuple[str, str, str], dict[int, int]
        ] = {}  # of buffers with other sizes than their weight
        self.memories: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, dict[str, dict[str, Any]]] = {}
        self.logged: dict[str, Tensor | float] = {}
        self.scope = ""  # whose call this is: set by the `Chain`, keys the state
        self._matches: dict[str | tuple[str, ...], list[Weight]] = {}
        self._counts: dict[int, int] = {}

    # ── weights

    def weights(self, match: str | tuple[str, ...] = "weights") -> list[Weight]:
        """Shard views of the matching parameters that this rank holds a part of (possibly none)."""
        if isinstance(match, list):
            match = tuple(match)
        if match not in self._matches:
            shapes = {weight.name: weight.shape for weight in self.all_weights}
            names = set(matching_names(shapes, match, scales_of(self.modules)))
            self._matches[match] = [w for w in self.all_weights if w.name in names]
        return self._matches[match]

    def total(self, weights: Sequence[Weight], values: Sequence[Tensor]) -> Tensor:
        """Sum of one 0-dim value per weight over every distinct shard of every stage, replicas counted once.

        Collective: every rank calls it, also one that holds no weight (``values`` empty).
        returns: 0-dim float64 (exact for counts up to 2^53).
        """
        device = self.all_weights[0].local.device if self.all_weights else torch.device("cpu")
        total = torch.zeros((), dtype=torch.float64, device=device)
        for weight, value in zip(weights, values, strict=True):
            if weight.owned:
                total += value
        return self.reduce(total, "sum")

    def count(self, weights: Sequence[Weight]) -> int:
        """Number of weights (elements) in the whole model that ``weights`` on all ranks stand for."""
        if id(weights) in self._counts:
            return self._counts[id(weights)]
        count = int(self.total(weights, [torch.tensor(w.local.numel()) for w in weights]))
        if any(weights is known for known in self._matches.values()):
            self._counts[id(weights)] = count  # lists kept by `weights` live as long as this run
        return count

    def kth_magnitude(
        self, weights: Sequence[Weight], k: int, values: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The ``k``-th smallest magnitude among all ``weights`` of the whole model (see `exact_quantile`).

        values: local tensors to look at instead, one for each weight.
        """
        held = zip(weights, values or [w.local for w in weights], strict=True)
        values = [value for weight, value in held if weight.owned]
        if not values and self.all_weights:
            values = [self.all_weights[0].local.new_empty(0)]
        return exact_quantile(values, k, lambda counts: self.reduce(counts, "sum"))

    def uniform(self, label: str = "") -> float:
        """A random number in [0, 1) from (seed, step, technique, label): equal on every mesh and after resume."""
        return random.Random(f"{self.seed}/{self.step}/{self.scope}/{label}").random()

    # ── modules and what flows through them

    def module(self, name: str) -> nn.Module | None:
        """The live module of that global name; None where it lives on another pipeline stage."""
        return self.modules.get(name)

    def hook(self, name: str, function: Callable[[nn.Module, Any, Any], Any]) -> bool:
        """Call ``function(module, args, output)`` after each forward of the module of that name within a step.

        What it returns (None: nothing) takes the output's place. Only in training steps, not in evaluation; until
        the phase ends.   returns: False where the module lives on another pipeline stage.
        """
        module = self.module(name)
        if module is None:
            return False

        def call(module: nn.Module, args: Any, output: Any) -> Any:
            return function(module, args, output) if self.in_step else None

        self._hooks.append(module.register_forward_hook(call))
        return True

    def unhook(self) -> None:
        """Take all hooks off again."""
        while self._hooks:
            self._hooks.pop().remove()

    def attach(self, x: Tensor, term: Tensor, name: str = "") -> Tensor:
        """``x`` itself, whose backward also carries the gradient of ``term``: a loss at an inner module.

        x:    an activation on the way to the loss; use what is returned in its place.
        term: 0-dim, already divided by global counts (`rows`, `items`); its gradient joins on this rank, so that
              sums over micro-batches and data ranks give the global term, on any pipeline stage.
        name: under which the trackers get the term's value, summed over the step's micro-batches of this rank.
        """
        if name:
            known = self.attached.get(name)
            self.attached[name] = term.detach() if known is None else known + term.detach()
        return attach(x, term, self.loss_scale * self.now.seed)

    def whole(self, module: nn.Module, output: Tensor) -> Tensor:
        """``output`` of ``module`` with all its features, [.., W], where ranks of the tensor axis have a part each.

        With gradients; collective over that axis, and what follows must be the same on all its ranks.
        """
        return output if self._whole is None else self._whole(module, output)

    def over_rows(self, x: Tensor, operation: str) -> Tensor:
        """``x`` combined (``sum``, ``max`` or ``min``) over all ranks that hold this pipeline stage: for what was
        seen of activations, whose rows are dealt over data ranks and whose features over the tensor axis.

        Collective over those ranks; put all that a stage has to say into one call.
        """
        return self._over_rows(x, operation)

    def items_mask(self, columns: Mapping[str, Tensor], valid: Tensor | None, logits: Tensor) -> Tensor:
        """Which places of the logits [rows, …, classes] the loss counts: bool [rows, …], no padding, nothing ignored.

        columns, valid: those of the micro-batch that the logits are of.
        """
        if self._items_mask is not None:
            return self._items_mask(columns, valid, logits)
        real = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        return real if valid is None else real & valid.view(-1, *[1] * (real.ndim - 1))

    # ── state: saved in the checkpoint, resharded on resume

    def buffer(
        self,
        weight: Weight,
        key: str,
        *,
        fill: float | bool,
        dtype: torch.dtype,
        sizes: Mapping[int, int] | None = None,
    ) -> Tensor:
        """A tensor placed like ``weight.local``, made with ``fill`` when first asked for.

        sizes: dim → size along it where the state has another one than the weight (1: one value for all); along
            these dims it is whole, and must be equal, on all ranks that share the weight.
        raises: ValueError for a size that is the weight's own (then it would be cut like the weight).
        """
        store = self.buffers.setdefault((self.scope, key), {})
        if weight.name not in store:
            sizes = {dim: size for dim, size in (sizes or {}).items() if (size, weight.shape[dim]) != (1, 1)}
            same = [dim for dim, size in sizes.items() if size == weight.shape[dim]]
            if same:
                raise ValueError(f"buffer {key} of {weight.name}: dim {same[0]} has the weight's own size")
            shape = Reduced(weight.name, weight.parameter, sizes).shape(weight.local)
            store[weight.name] = torch.full(shape, fill, dtype=dtype, device=weight.local.device)
            self.sizes[(self.scope, key, weight.name)] = sizes
        return store[weight.name]

    @property
    def memory(self) -> dict[str, Any]:
        """JSON values of this technique; must be set alike on all ranks."""
        return self.memories.setdefault(self.scope, {})

    def note(self, weight: Weight) -> dict[str, Any]:
        """JSON values of this technique about one weight; set alike on all ranks that hold a part of it."""
        return self.notes.setdefault(self.scope, {}).setdefault(weight.name, {})

    def log(self, name: str, value: Tensor | float) -> None:
        """Hand a number to the trackers; it stays on the device until it is written."""
        self.logged[name] = value

    def at(self, when: float | int) -> int:
        """A point in the phase as a step: a float is a fraction of its steps, an int a number of steps."""
        return round(when * self.steps) if isinstance(when, float) else when
