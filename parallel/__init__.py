"""The mesh and the engines that spread one model over it."""

from .engine import Engine, Masters
from .layout import Layout
from .mesh import AXES, DATA_AXES, TOKEN_AXES, Mesh, degrees_for
from .native import NativeEngine
from .processes import join
from .split import module_costs
from .whole import divided_as, full_tensor, gather, local_part, place, scatter

__all__ = [
    "AXES",
    "DATA_AXES",
    "TOKEN_AXES",
    "Engine",
    "Layout",
    "Masters",
    "Mesh",
    "NativeEngine",
    "degrees_for",
    "divided_as",
    "full_tensor",
    "gather",
    "join",
    "local_part",
    "module_costs",
    "place",
    "scatter",
]
