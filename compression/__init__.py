"""Compression while training: techniques, the shard view that they work on, and what they deliver.

One file under ``compression/<idea>/`` is one technique. `Chain` runs a phase's techniques, `Run` is what each of
them sees, `Weight` is one parameter on any mesh, `exact_quantile` the threshold that needs no gathering.
"""

from .chain import Chain
from .distillation import Teacher
from .matching import matching_names
from .quantile import exact_quantile
from .registry import build, name_of, technique_class, techniques
from .replay import kept_grids, kept_zeros, replay
from .run import Run
from .technique import Check, Record, State, Technique, Traits
from .together import Refusal, refusals
from .weight import Weight, local_of, weights_of

__all__ = [
    "Chain",
    "Check",
    "Record",
    "Refusal",
    "Run",
    "State",
    "Teacher",
    "Technique",
    "Traits",
    "Weight",
    "build",
    "exact_quantile",
    "kept_grids",
    "kept_zeros",
    "local_of",
    "matching_names",
    "name_of",
    "refusals",
    "replay",
    "technique_class",
    "techniques",
    "weights_of",
]
