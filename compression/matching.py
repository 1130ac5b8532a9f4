"""Which parameters a technique means: by name, global shape and module type, so that every mesh gives one answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

WEIGHTS, SCALES = "weights", "scales"


def matching_parameters(model: nn.Module, match: str | Sequence[str]) -> list[str]:
    """Names of the parameters of the whole ``model`` that ``match`` selects (see `matching_names`)."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return matching_names(shapes, match, scales_of(dict(model.named_modules())))


def matching_modules(modules: Mapping[str, nn.Module], match: str | Sequence[str]) -> list[str]:
    """Names out of ``modules`` that the globs of ``match`` select, the whole model (named "") left out."""
    return [name for name in matching_names(dict.fromkeys(modules, ()), match) if name]


def scales_of(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the scale vectors of normalisation layers: batch, layer, group, RMS norms, also of other libraries.

    A normalisation layer is one whose class is called so and whose ``weight`` is a vector.
    """
    return [
        f"{name}.weight" if name else "weight"
        for name, module in modules.items()
        if "norm" in type(module).__name__.lower()
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.ndim == 1
    ]


def matching_names(
    shapes: Mapping[str, Sequence[int]], match: str | Sequence[str], scales: Collection[str] = ()
) -> list[str]:
    """Names out of ``shapes`` (name → global shape) that ``match`` selects, in the order of ``shapes``.

    match: ``weights`` = every parameter of two or more dims (filters, matrices, embeddings; no biases and no
        norms, and nothing whose own name begins with ``_``: such parameters help a technique and do not stay);
        ``scales`` = those in ``scales``, the scale vectors of normalisation layers; otherwise globs over the full
        names; a pattern that begins with ``!`` takes names away again.
    """
    patterns = [match] if isinstance(match, str) else list(match)
    wanted = [p for p in patterns if not p.startswith("!")] or [WEIGHTS]
    unwanted = [p[1:] for p in patterns if p.startswith("!")]
    return [
        name
        for name, shape in shapes.items()
        if any(_fits(name, shape, p, scales) for p in wanted)
        and not any(_fits(name, shape, p, scales) for p in unwanted)
    ]


def _fits(name: str, shape: Sequence[int], pattern: str, scales: Collection[str]) -> bool:
    if pattern == WEIGHTS:
        return len(shape) >= 2 and not name.rpartition(".")[2].startswith("_")
    return name in scales if pattern == SCALES else fnmatchcase(name, pattern)
