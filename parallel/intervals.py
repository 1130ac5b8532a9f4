"""Parameters that are cut into flat intervals, one on each rank, and the way from one such cut to another.

ZeRO cuts the flattened parameters wherever the ranks' shares end, in the midst of a row. Techniques ask for whole rows:
sums along a row, one scale a row. Rows dealt over ranks are intervals of the flat parameter too, so that both are cuts
of the same line, and going from one to the other moves what lies between their ends.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Interval = tuple[int, int]
"""First element and the one behind the last, of the flattened parameter; equal where nothing is held."""
Cut = Mapping[str, Sequence[Interval]]
"""Name → interval on each rank."""
_Piece = tuple[int, str, int, int]  # the other rank; the name; start and end within this rank's interval


def row_intervals(shape: Sequence[int], ranks: int) -> list[Interval]:
    """Where `Shard(0)` puts the rows of a parameter of this shape, as intervals: ceil(rows / ranks) on each rank."""
    rows = shape[0] if len(shape) else 1
    size = torch.Size(shape).numel() // max(rows, 1)
    share = -(-rows // ranks)
    return [(min(rank * share, rows) * size, min((rank + 1) * share, rows) * size) for rank in range(ranks)]


def equal_intervals(numel: int, share: int, ranks: int) -> list[Interval]:
    """Pieces of `share` elements, the last ones shorter or empty."""
    return [(min(rank * share, numel), min((rank + 1) * share, numel)) for rank in range(ranks)]


def overlap(first: Interval, second: Interval) -> Interval:
    """What both hold; (0, 0) where that is nothing."""
    start, end = max(first[0], second[0]), min(first[1], second[1])
    return (start, end) if start < end else (0, 0)


class Exchange:
    """Moves parameters from the cut `here` to the cut `there` of the same parameters."""

    def __init__(
        self, here: Cut, there: Cut, *, rank: int, group: dist.ProcessGroup | None, device: torch.device
    ) -> None:
        """group: the ranks that hold the intervals, in their order (None: one process).
        device: where the group communicates; tensors may lie elsewhere.
        """
        self._here, self._there = here, there
        self._rank, self._group, self._device = rank, group, device
        self._known: dict[tuple[str, ...], tuple[bool, list[_Piece], list[_Piece]]] = {}

    def move(self, held: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        """Fill `into` (this rank's intervals of `there`) from `held` (those of `here`) on all ranks. Collective.

        held, into: the same names in the same order on all ranks; flat tensors of the intervals' lengths, contiguous.
        cost: a copy of what stays, and one all-to-all of what does not (none where nothing leaves any rank).
        """
        names = tuple(into)
        for name in names:
            self._keep(name, held[name], into[name])
        if self._group is None:
            return
        if names not in self._known:
            self._known[names] = self._routes(names)
        moves, sends, receives = self._known[names]
        if not moves:
            return
        dtype = next(iter(held.values())).dtype
        sent = [held[name][start:end].to(self._device) for _, name, start, end in sends]
        out = torch.cat(sent) if sent else torch.empty(0, dtype=dtype, device=self._device)
        lengths = self._lengths(receives)
        arrived = torch.empty(sum(lengths), dtype=dtype, device=self._device)
        dist.all_to_all_single(arrived, out, lengths, self._lengths(sends), group=self._group)
        place = 0
        for _, name, start, end in receives:
            into[name][start:end].copy_(arrived[place : place + end - start])
            place += end - start

    def _keep(self, name: str, held: Tensor, into: Tensor) -> None:
        mine, ours = self._here[name][self._rank], self._there[name][self._rank]
        start, end = overlap(mine, ours)
        if end > start:
            into[start - ours[0] : end - ours[0]].copy_(held[start - mine[0] : end - mine[0]])

    def _routes(self, names: tuple[str, ...]) -> tuple[bool, list[_Piece], list[_Piece]]:
        """Whether any rank sends anything (the same answer on all), what is sent here, and what arrives."""
        moves = any(
            source != target and overlap(mine, theirs) != (0, 0)
            for name in names
            for source, mine in enumerate(self._here[name])
            for target, theirs in enumerate(self._there[name])
        )
        return (
            moves,
            self._shared(names, self._here, self._there),
            self._shared(names, self._there, self._here),
        )

    def _shared(self, names: tuple[str, ...], mine: Cut, theirs: Cut) -> list[_Piece]:
        """What this rank holds in one cut and others hold in the other, by the other rank."""
        pieces = []
        for other in range(len(next(iter(mine.values())))):
            for name in names if other != self._rank else ():
                own = mine[name][self._rank]
                start, end = overlap(own, theirs[name][other])
                if end > start:
                    pieces.append((other, name, start - own[0], end - own[0]))
        return pieces

    def _lengths(self, pieces: Sequence[_Piece]) -> list[int]:
        assert self._group is not None
        lengths = [0] * self._group.size()
        for other, _, start, end in pieces:
            lengths[other] += end - start
        return lengths
