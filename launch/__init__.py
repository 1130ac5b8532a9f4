"""Command line, local ranks, torchrun and SLURM environments, failure handling. Imports no torch by itself."""

from .environment import Place, read_place
from .local import Outcome, run_local
from .rank import run_rank
from .submit import Future, RankFailed, submit
from .watch import Watch

__all__ = [
    "Future",
    "Outcome",
    "Place",
    "RankFailed",
    "Watch",
    "read_place",
    "run_local",
    "run_rank",
    "submit",
]
