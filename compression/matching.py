"""Which parameters a technique means: by name and global shape only, so that every mesh gives one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

WEIGHTS = "weights"


def matching_names(shapes: Mapping[str, Sequence[int]], match: str | Sequence[str]) -> list[str]:
    """Names out of ``shapes`` (name → global shape) that ``match`` selects, in the order of ``shapes``.

    match: ``weights`` = every parameter of two or more dims (filters, matrices, embeddings; no biases and no
        norms, and nothing whose own name begins with ``_``: such parameters help a technique and do not stay);
        otherwise globs over the full names; a pattern that begins with ``!`` takes names away again.
    """
    patterns = [match] if isinstance(match, str) else list(match)
    wanted = [p for p in patterns if not p.startswith("!")] or [WEIGHTS]
    unwanted = [p[1:] for p in patterns if p.startswith("!")]
    return [
        name
        for name, shape in shapes.items()
        if any(_fits(name, shape, p) for p in wanted) and not any(_fits(name, shape, p) for p in unwanted)
    ]


def _fits(name: str, shape: Sequence[int], pattern: str) -> bool:
    if pattern == WEIGHTS:
        return len(shape) >= 2 and not name.rpartition(".")[2].startswith("_")
    return fnmatchcase(name, pattern)
