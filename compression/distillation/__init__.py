"""Distillation: a student learns from a teacher's outputs, hidden states and attention, on any mesh.

The teacher's outputs of a step are columns of its rows (`Teacher`), so that every technique sees them where the
student's values of the very same rows are, on whichever rank that is.
"""

from ._teacher import Teacher, Want

__all__ = ["Teacher", "Want"]
