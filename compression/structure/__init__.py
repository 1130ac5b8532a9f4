"""Coupled groups of a model, found by tracing: what can be removed together, and taking it out."""

from .build import trace
from .cost import graph_macs, graph_parameters, macs, unit_cost
from .cut import CutRecord, PassThrough, allowed, cut, recut
from .graph import Block, Graph, Group, Kept, Member

__all__ = [
    "Block",
    "CutRecord",
    "Graph",
    "Group",
    "Kept",
    "Member",
    "PassThrough",
    "allowed",
    "cut",
    "graph_macs",
    "graph_parameters",
    "macs",
    "recut",
    "trace",
    "unit_cost",
]
