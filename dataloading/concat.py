"""Several sources as one: rows numbered one source after the other."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .fingerprint import combined
from .mapped import FRESH, Make
from .source import Source


class ConcatSource:
    """The rows of `sources` end to end. raises: DataError where their columns differ."""

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise DataError("no source was given; want at least one")
        self.parts = list(sources)
        self.columns = dict(sources[0].columns)
        for number, source in enumerate(sources):
            if dict(source.columns) != self.columns:
                said = "; ".join(
                    f"source {at}: {_said(one)}" for at, one in ((0, sources[0]), (number, source))
                )
                raise DataError(f"sources that are read together need the same columns; {said}")
        self.starts = np.cumsum([0, *(len(source) for source in sources)])
        """First row of each source, and the number of all rows."""
        self.weights: Sequence[float] | None = None
        """Shares in which a Loader mixes the sources; None: all rows are shuffled together."""
        self.fingerprint = combined(*(source.fingerprint for source in sources))
        self.concurrent = all(getattr(source, "concurrent", False) for source in sources)
        self.reuses = True
        self.resident = all(getattr(source, "resident", False) for source in sources)
        self.holds_lock = any(getattr(source, "holds_lock", False) for source in sources)
        self.ragged = getattr(sources[0], "ragged", None)
        longest = [getattr(source, "row_length", None) for source in sources]
        self.row_length = max(longest) if all(longest) else None  # type: ignore[type-var]
        self.vocabulary = getattr(sources[0], "vocabulary", None)
        classes = [getattr(source, "classes", None) for source in sources]
        self.classes = max(classes) if all(classes) else None  # type: ignore[type-var]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def lengths(self) -> np.ndarray:
        """Values in every row of the column `ragged`, int64 [rows]."""
        return np.concatenate([source.lengths for source in self.parts])  # type: ignore[attr-defined]

    @property
    def token_type(self) -> torch.dtype:
        """Type of the values of the column `ragged`."""
        return self.parts[0].token_type  # type: ignore[attr-defined]

    def gather(
        self, rows: np.ndarray, make: Make | None = None, width: int | None = None
    ) -> dict[str, Tensor]:
        """Column → [len(rows), …]."""
        which = np.searchsorted(self.starts, rows, side="right") - 1
        if width is None and self.ragged:
            width = int(self.lengths[rows].max(initial=0))
        out: dict[str, Tensor] = {}
        for number in np.unique(which):
            here, source = np.flatnonzero(which == number), self.parts[number]
            more = {"width": width} if self.ragged else {}
            found = source.gather(rows[here] - self.starts[number], **more)
            if len(here) == len(rows):
                return found
            at = torch.from_numpy(here)
            for name, tensor in found.items():
                shape = (len(rows), *tensor.shape[1:])
                if name not in out:
                    out[name] = (make or FRESH)(shape, tensor.dtype)
                out[name].index_copy_(0, at, tensor)
        return out or self.parts[0].gather(rows)

    def runs(
        self, rows: np.ndarray, first: np.ndarray, lengths: np.ndarray, places: np.ndarray, out: Tensor
    ) -> None:
        """Values of the column `ragged`: see `mapped.Ragged.runs`."""
        which = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(which):
            here = which == number
            piece = torch.empty(int(lengths[here].sum()), dtype=out.dtype)
            ends = np.cumsum(lengths[here])
            source = self.parts[number]
            source.runs(  # type: ignore[attr-defined]
                rows[here] - self.starts[number], first[here], lengths[here], ends - lengths[here], piece
            )
            at = np.repeat(places[here] - (ends - lengths[here]), lengths[here]) + np.arange(len(piece))
            out.index_copy_(0, torch.from_numpy(at), piece)


def _said(source: Source) -> str:
    return ", ".join(f"{name} {info.dtype} {list(info.shape)}" for name, info in source.columns.items())
