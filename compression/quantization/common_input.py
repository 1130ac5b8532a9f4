"""What layers that take the same tensor (query, key, value) need not work out again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ends import Ends, RowEnds


class CommonInput:
    """The tensor that was rounded last: its ends, and what it became on which grid.

    One for all quantizers of a run. Holds the tensor until another one comes or ``forget`` is called.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.forget()

    def forget(self) -> None:
        """Let go of the tensor."""
        self._x: Tensor | None = None
        self._seen: tuple[int, bool] | None = None
        self.ends: tuple[Ends, RowEnds | None] | None = None
        self.results: dict[Any, Tensor] = {}  # grid → what the tensor became

    def look_at(self, x: Tensor) -> None:
        """Forget what was known unless it was of this very ``x``, as it is now and under the same autograd."""
        seen = (x._version, torch.is_grad_enabled())
        if self._x is not x or self._seen != seen:
            self.forget()
            self._x, self._seen = x, seen
