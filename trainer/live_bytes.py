"""Bytes of all tensors that live at once, seen operator by operator: on shapes alone, or in a run."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While this is entered: what tensors hold together, and the most that it ever was.

    A storage counts once, however many tensors look at it, and with the size that it has just then: FSDP2 empties
    storages and fills them again. What lives already counts once it has been worked with.
    cost: a pass over all living storages for each operator; for models of one's own size, not for timing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._living: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._shares: dict[int, float] = {}
        self.most = 0.0

    def count(self, tensor: Tensor, share: float) -> None:
        """Let this tensor's memory count so many times its size from now on; 0: not at all."""
        self._shares[_storage(tensor)._cdata] = share

    @property
    def now(self) -> float:
        """Bytes at this moment."""
        held = ((key, reference()) for key, reference in self._living.items())
        return sum(s.nbytes() * self._shares.get(key, 1.0) for key, s in held if s is not None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(
            (args, kwargs, outputs)
        ):  # weights and moments are seen when they are worked on
            if isinstance(leaf, Tensor):
                self._see(leaf)
        self.most = max(self.most, self.now)
        return outputs

    def _see(self, tensor: Tensor) -> None:
        try:
            storage = _storage(tensor)
        except (NotImplementedError, RuntimeError):  # a kind of tensor without one
            return
        key = storage._cdata
        if key not in self._living or self._living[key]() is None:
            self._living[key] = weakref.ref(storage, lambda _, key=key: self._gone(key))

    def _gone(self, key: int) -> None:
        self._living.pop(key, None)
        self._shares.pop(key, None)  # the next storage may get the same address


def _storage(tensor: Any) -> torch.UntypedStorage:
    while hasattr(tensor, "_local_tensor"):  # a DTensor has no memory of its own
        tensor = tensor._local_tensor
    return tensor.untyped_storage()
