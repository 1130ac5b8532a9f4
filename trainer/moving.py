"""Weights that their engine moves (ZeRO): what techniques write goes back to it, moments come from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..compression import Weight
from ..compression.kept_weight import KeptWeight
from ..parallel import Engine, Mesh
from .config import OptimizerConfig
from .optimizers import build_optimizer


class Moving:
    """Between an engine with masters and the techniques of one phase."""

    def __init__(self, engine: Engine, weights: Sequence[Weight], mesh: Mesh) -> None:
        assert engine.masters is not None
        self._engine, self._masters, self._mesh = engine, engine.masters, mesh
        self._weights = [w for w in weights if isinstance(w, KeptWeight)]

    def update(self, finite: bool = True) -> None:
        """One optimizer step, or (not finite) none; the weights then hold dense values. Collective."""
        (self._masters.step if finite else self._masters.skip)()
        for weight in self._weights:
            weight.seen()

    def settle(self) -> None:
        """What techniques have written since `update` is what the next forward computes with. Collective.

        cost: one all-reduce of three flags a weight; of weights that were written to, an exchange of their shares.
        """
        if not self._weights or not self._masters.looked_at:
            return
        flags = [[w.touched, _replaces(w), not w.holds_dense] for w in self._weights]
        agreed = self._mesh.reduce(torch.tensor(flags, dtype=torch.int32, device=self._mesh.device), "max")
        changed, dense = [], {}
        for weight, (touched, replaced, asked) in zip(self._weights, agreed.tolist(), strict=True):
            if touched:
                changed.append(weight.name)
            if replaced:
                theirs = self._masters.whole_rows(weight.name) if asked else None
                dense[weight.name] = weight.dense if weight.holds_dense or theirs is None else theirs
        self._masters.take(changed, dense)
        for weight in self._weights:
            weight.seen()

    def settle_all(self, moments: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        """As `settle`, after all weights and all optimizer state were written (a resume, a new phase). Collective."""
        self._engine.written({w.name: w.dense for w in self._weights})
        self._masters.load_states(moments, counts)
        for weight in self._weights:
            weight.seen()

    def adopt(self) -> None:
        """A phase ends: working values are the dense ones from now on. Collective."""
        self._engine.written()
        for weight in self._weights:
            weight.seen()

    def retune(self, settings: OptimizerConfig, *, looked_at: bool) -> None:
        """Give the engine's optimizer the settings of a new phase; its state goes on. Collective."""
        self._masters.look(looked_at)
        like = torch.zeros(1, device=self._mesh.device)
        (fresh,) = build_optimizer(settings, [("any", like)]).param_groups
        for group in self._masters.optimizer.param_groups:
            group.update(
                {k: v for k, v in fresh.items() if k not in ("params", "param_names", "fused", "foreach")}
            )


def kept_weights(engine: Engine, coordinates: Mapping[str, int]) -> list[Weight]:
    """Shard views of the trainable parameters of an engine with masters."""
    keeper: Any = engine.masters
    return [
        KeptWeight(name, parameter, coordinates, keeper)
        for name, parameter in engine.parameters().items()
        if parameter.requires_grad
    ]


def _replaces(weight: KeptWeight) -> bool:
    return weight.replaced if weight.projected else weight.touched
