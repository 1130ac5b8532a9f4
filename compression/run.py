"""The `Run`: all that a technique sees of the training run it works in."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .matching import matching_names
from .quantile import exact_quantile
from .weight import Weight

Reduce = Callable[[Tensor, str], Tensor]
"""Combine a tensor (``sum`` or ``max``) over all ranks that hold other weights: shards, tensor parts, stages."""


class Run:
    """Where the run stands, its weights, sums over the mesh, and a technique's saved state.

    step:  optimizer step within the phase, counted from 1 while a step is worked on (0 before the first).
    steps: optimizer steps that the phase will take.
    learning_rate: that of the present step, for proximal forms.

    For a loop of your own: ``Run(weights_of(dict(model.named_parameters())), steps=1000)``.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        *,
        steps: int,
        seed: int = 0,
        reduce: Reduce | None = None,
    ) -> None:
        self.all_weights = list(weights)
        self.steps = steps
        self.seed = seed
        self.step = 0
        self.learning_rate = 0.0
        self.reduce: Reduce = reduce or (lambda x, operation: x)
        self.buffers: dict[tuple[str, str], dict[str, Tensor]] = {}
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
            names = set(matching_names({w.name: w.shape for w in self.all_weights}, match))
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

    # ── state: saved in the checkpoint, resharded on resume

    def buffer(self, weight: Weight, key: str, *, fill: float | bool, dtype: torch.dtype) -> Tensor:
        """A tensor shaped and placed like ``weight.local``, made with ``fill`` when first asked for."""
        store = self.buffers.setdefault((self.scope, key), {})
        if weight.name not in store:
            store[weight.name] = torch.full_like(weight.local, fill, dtype=dtype)
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
