"""What a loader hands to the step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one data rank for one optimizer step.

    Rows are micro-batch major: `tensor.tensor_split(microbatches)` gives the micro-batches, also when sizes differ by
    one. A rank may have no row in the short last batch of an epoch; its tensors then have size 0.
    """

    columns: dict[str, Tensor]
    """Name → [rows, …]."""
    valid: Tensor | None
    """bool [rows], on the CPU's or the batch's device; False: a padding row. None: every row is real. Read only."""
    global_rows: int
    """Real rows of the whole global batch, over all data ranks."""
    epoch: int
    """Epoch that the rows are of, from 0."""
    index: int
    """Number of this batch in its epoch, from 0."""
    rows: Tensor
    """Number of each row in the source, int64 [rows] on the CPU; a padding row has that of the row it copies."""
