"""The scales of normalisation layers: where network slimming pulls and what it ranks."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from torch import nn

from ..matching import matching_names, scales_of
from ..run import Run
from ..weight import Weight


def scale_names(modules: Mapping[str, nn.Module], match: str | tuple[str, ...]) -> list[str]:
    """Those of the scale vectors of normalisation layers among ``modules`` that ``match`` selects."""
    scales = scales_of(modules)
    return matching_names(dict.fromkeys(scales, (1,)), match, scales)


# Walking all modules at every step would cost more than the penalty itself.
_NAMES: WeakKeyDictionary[Run, dict[str | tuple[str, ...], tuple[str, ...]]] = WeakKeyDictionary()


def scales_in(run: Run, match: str | tuple[str, ...]) -> list[Weight]:
    """The matching scales that this rank holds a part of."""
    match = tuple(match) if isinstance(match, list) else match
    names = _NAMES.setdefault(run, {})
    if match not in names:
        names[match] = tuple(scale_names(run.modules, match))
    return run.weights(names[match]) if names[match] else []
