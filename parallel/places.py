"""Which tokens of a sequence a rank of the context axis has: a run from its beginning and one from its end.

Under a causal mask a token is compared with all before it, so that the last of equal consecutive pieces would have
nearly twice the work of the average one, and all would wait for it. Folded, piece i of n has the i-th and the i-th
last of 2n runs: the same work for everybody. Pieces of an odd length cannot be halved; they are consecutive.
"""

import torch
from torch import Tensor


def runs_in(length: int) -> int:
    """Runs that a piece of `length` tokens is made of."""
    return 2 if length % 2 == 0 else 1


def runs_of(index: int, pieces: int, length: int) -> list[int]:
    """The numbers, counted along the sequence, of the runs in piece `index`; each has length / runs_in tokens."""
    return [index, 2 * pieces - 1 - index] if runs_in(length) == 2 else [index]


def places_of(index: int, pieces: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [length]: where in the whole sequence the tokens of piece `index` stand, rising."""
    each = length // runs_in(length)
    run = torch.arange(each, device=device)
    return torch.cat([run + number * each for number in runs_of(index, pieces, length)])


def in_order(found: list[Tensor]) -> Tensor:
    """All pieces […, L, D], by index → the whole sequence […, T, D]."""
    length = found[0].shape[-2]
    if runs_in(length) == 1:
        return torch.cat(found, dim=-2)
    first, last = zip(*(x.tensor_split(2, dim=-2) for x in found), strict=True)
    return torch.cat([*first, *reversed(last)], dim=-2)


def by_piece(whole: Tensor, pieces: int) -> Tensor:
    """The whole sequence […, T, D] → [pieces, …, L, D]: what `in_order` has put together."""
    if runs_in(whole.shape[-2] // pieces) == 1:
        return torch.stack(whole.chunk(pieces, dim=-2))
    runs = whole.chunk(2 * pieces, dim=-2)
    return torch.stack([torch.cat([runs[i], runs[-1 - i]], dim=-2) for i in range(pieces)])
