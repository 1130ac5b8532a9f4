"""Memory of batches, used again as soon as nobody holds a tensor in it."""

import threading
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

_LEAST = 1 << 16  # bytes below which fresh memory costs nothing that could be saved


class Buffers:
    """Gives tensors whose memory comes back when the last tensor on it (views, autograd's own) is gone.

    A batch that somebody keeps stays as it is: only memory that is free is written again.
    pinned: page-locked memory, from which a GPU copies while the step goes on.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: defaultdict[int, list[np.ndarray]] = defaultdict(list)
        self._changed = threading.Lock()
        self.bytes = 0
        """Memory taken so far, in use or free."""

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor [shape] with whatever was there before."""
        wanted = dtype.itemsize
        for size in shape:
            wanted *= size
        if wanted < _LEAST and not self._pinned:
            return torch.empty(shape, dtype=dtype)
        room = 1 << max(wanted - 1, 1).bit_length() if wanted < (1 << 20) else -(-wanted >> 20) << 20
        with self._changed:
            free = self._free[room]
            whole = free.pop() if free else None
        if whole is None:
            whole = torch.empty(room, dtype=torch.uint8, pin_memory=self._pinned).numpy()
            self.bytes += room
        lent = whole[:wanted]
        # The tensor keeps this view alive, and so does every tensor that shares its memory.
        weakref.finalize(lent, self._free[room].append, whole).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)
