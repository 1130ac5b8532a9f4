"""Data as global batches: the same rows in the same order on every mesh, resumable at any step.

A *source* gives rows by number, whole batches at a time; a *loader* decides which rows make which batch, takes this
data rank's part of them, and prepares the next ones meanwhile.
"""

from .augment import Augment
from .batch import Batch
from .cache import Cache
from .documents import After, next_tokens
from .draws import Draws
from .facts import facts
from .lengths import Buckets
from .load import load_source
from .loader import Loader
from .opening import as_source
from .packing import Packing
from .report import Report
from .source import ArraySource, ColumnInfo, Source
from .transform import Transform, transformed

__all__ = [
    "After",
    "ArraySource",
    "Augment",
    "Batch",
    "Buckets",
    "Cache",
    "ColumnInfo",
    "Draws",
    "Loader",
    "Packing",
    "Report",
    "Source",
    "Transform",
    "as_source",
    "facts",
    "load_source",
    "next_tokens",
    "transformed",
]
