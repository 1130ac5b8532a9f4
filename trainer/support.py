"""Which technique is proven on which mesh and engine: what the contract tests have found, in support.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

AXES = ("pipeline", "replicate", "shard", "context", "tensor")


@dataclass(frozen=True, kw_only=True)
class Support:
    """The table. Written by docs/support.py from a run of the contract tests."""

    places: Mapping[str, Mapping[str, Any]]
    """Name of a mesh or engine → its keys of `parallel`."""
    proven: Mapping[str, Sequence[str]]
    """Technique → places where it gives the numbers of one process."""

    def refusal(self, technique: str, parallel: Mapping[str, Any]) -> str | None:
        """Why a technique must not run with these keys of `parallel`; None where it may.

        A mesh of several axes that is not in the table itself needs each of its axes proven, and one such mesh.
        Techniques that are not in the table, a user's own, may run anywhere.
        """
        kind = kind_of(parallel)
        if technique not in self.proven or kind == ():
            return None
        known: dict[tuple[str, ...], list[str]] = {}
        for name, keys in self.places.items():
            known.setdefault(kind_of(keys), []).append(name)
        held = set(self.proven[technique])
        if kind in known:
            lacking = [name for name in known[kind] if name not in held]
        else:
            singles = [name for axis in kind for name in known.get((axis,), [f"{axis} alone"])]
            lacking = [name for name in singles if name not in held]
            products = [name for key, names in known.items() if len(key) > 1 for name in names]
            if not lacking and not any(name in held for name in products):
                lacking = products
        if not lacking:
            return None
        fine = [name for name in self.places if name in held]
        return f"{technique} is not proven on {', '.join(lacking)}; use {', '.join(fine) if fine else 'one process'}"


@cache
def support() -> Support:
    """The table that this version was tested with."""
    import yaml

    read = yaml.safe_load(files("forgepress.trainer").joinpath("support.yaml").read_text())
    return Support(places=read["places"], proven=read["proven"])


def kind_of(parallel: Mapping[str, Any]) -> tuple[str, ...]:
    """The axes above 1 in mesh order, or the one name of an engine that divides weights in a way of its own.

    (): one process. An engine that divides nothing is replicas, as DDP is.
    """
    axes = tuple(axis for axis in AXES if int(parallel.get(axis, 1)) > 1)
    engine = parallel.get("engine", "native")
    if engine == "native" or "shard" not in axes:
        return axes
    if engine == "deepspeed":
        return (f"zero-{parallel.get('deepspeed', {}).get('stage', 2)}",)
    return ("accelerate-fsdp2",)


def table(columns: Support | None = None) -> list[list[str]]:
    """Rows of words: the heading, then each technique with ✓ or – for every place."""
    held = columns or support()
    rows = [["technique", *held.places]]
    for technique, places in sorted(held.proven.items()):
        rows.append([technique, *("✓" if place in places else "–" for place in held.places)])
    return rows
