"""The mesh and the engines that spread one model over it."""

from .layout import Layout
from .mesh import AXES, DATA_AXES, Mesh, degrees_for
from .native import NativeEngine
from .processes import join

__all__ = ["AXES", "DATA_AXES", "Layout", "Mesh", "NativeEngine", "degrees_for", "join"]
