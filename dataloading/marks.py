"""Which document each token of a packed row belongs to, and its position in it."""

import numpy as np
import torch
from torch import Tensor

from . import native
from .mapped import copy_runs
from .packing import Pieces


def mark_documents(pieces: Pieces, padding: int, tokens: Tensor, document: Tensor, position: Tensor) -> None:
    """Fill `document` and `position` (int32 [rows, length]), and the ends of `tokens` where rows end early.

    pieces: of these rows, whose tokens are in place.   padding: the token at such ends; the others are 0 there.
    """
    if native.library() is not None:
        content = torch.tensor(padding, dtype=tokens.dtype).numpy().tobytes()
        marks = (document, position)
        return native.mark_documents(pieces.first, pieces.lengths, pieces.rows, content, tokens, marks)
    count, length = tokens.shape
    places = pieces.rows * length + pieces.places
    document.zero_().view(-1)[torch.from_numpy(places)] = 1  # where a document begins its number goes up
    torch.cumsum(document, 1, dtype=torch.int32, out=document)
    ends = np.zeros(count, np.int64)
    np.maximum.at(ends, pieces.rows, pieces.places + pieces.lengths)
    is_padding = torch.arange(length) >= torch.from_numpy(ends)[:, None]
    document.masked_fill_(is_padding, 0)
    longest = int((pieces.first + pieces.lengths).max(initial=1))
    numbers = torch.arange(longest, dtype=torch.int32)
    copy_runs(numbers, pieces.first, pieces.lengths, places, position.view(-1))
    tokens.masked_fill_(is_padding, padding)
    position.masked_fill_(is_padding, 0)
