"""The shard view of a weight that somebody else moves: an engine with its own copy in full precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from .weight import Weight


class Keeper(Protocol):
    """Who moves the weights, and keeps their dense values."""

    def gradient(self, name: str) -> Tensor | None:
        """That of the last backward, shaped like the local part."""
        ...

    def whole_rows(self, name: str) -> Tensor:
        """The dense values of the local part. Collective."""
        ...


class KeptWeight(Weight):
    """As `Weight`; its dense copy is the keeper's, so that no second one is made here.

    After each step the keeper fills ``local`` with the values that its optimizer has moved; what techniques then write
    into it is taken back by whoever calls ``chain.after_step`` (see `trainer.moving`).
    """

    def __init__(
        self, name: str, parameter: Tensor, coordinates: Mapping[str, int] | None, keeper: Keeper
    ) -> None:
        super().__init__(name, parameter, coordinates)
        self._keeper = keeper
        self._seen = self.local._version
        self._asked = False  # somebody reads the dense values in every step: then a copy here is cheaper

    @property
    def grad(self) -> Tensor | None:
        """As `Weight.grad`."""
        return self._keeper.gradient(self.name)

    def take_grad(self) -> None:
        """As `Weight.take_grad`: the keeper's gradient is asked for when it is read."""

    def drop_grad(self) -> None:
        """As `Weight.drop_grad`: the keeper drops it with its step."""

    @property
    def dense(self) -> Tensor:
        """As `Weight.dense`. Collective over the ranks that share the parameter, where the keeper has it."""
        if not self.projected:
            return self.local
        if self._dense is None:
            self._asked = True
            self._dense = self._keeper.whole_rows(self.name)
        return self._dense

    def project(self, change: Callable[[Tensor], object]) -> None:
        """As `Weight.project`; nothing is kept aside where the keeper has the same values."""
        if not self.projected:
            self.replaced = self.touched
            self._dense = self.local.clone() if self.touched or self._asked else None
            self.projected = True
        change(self.local)

    def restore_dense(self) -> None:
        """As `Weight.restore_dense`: the keeper has never had other values."""
        self.forget_dense()

    def forget_dense(self) -> None:
        """As `Weight.forget_dense`."""
        super().forget_dense()
        self.replaced = False

    # ── what the keeper is to be told

    replaced = False
    """Whether the dense values behind a projection are others than the keeper's."""

    @property
    def touched(self) -> bool:
        """Whether anybody has written into ``local`` since `seen`."""
        return self.local._version != self._seen

    @property
    def holds_dense(self) -> bool:
        """Whether the dense values can be had without asking anybody."""
        return not self.projected or self._dense is not None

    def seen(self) -> None:
        """The keeper and ``local`` agree: it has filled ``local``, or has taken what was written."""
        self._seen, self.replaced = self.local._version, False
        if not self._asked:
            self._dense = None
