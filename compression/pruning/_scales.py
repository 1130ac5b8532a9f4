"""The scales of normalisation layers: where network slimming pulls and what it ranks."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..matching import matching_names
from ..run import Run
from ..weight import Weight

SCALES = "scales"
_OTHERS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def scale_names(modules: Mapping[str, nn.Module], match: str | tuple[str, ...]) -> list[str]:
    """Names of the scale parameters (``weight``) of normalisation layers among ``modules`` that ``match`` selects.

    match: ``scales`` = those of layers that normalise every channel by itself (BatchNorm, InstanceNorm), so that the
        others stay what they were when one goes; otherwise globs over names, of any normalisation layer.
    """
    kinds = (_NormBase,) if match == SCALES else (_NormBase, *_OTHERS)
    shapes = {}
    for name, module in modules.items():
        scale = getattr(module, "weight", None)
        if isinstance(scale, nn.Parameter) and _normalises(module, kinds):
            shapes[f"{name}.weight".lstrip(".")] = scale.shape
    return list(shapes) if match == SCALES else matching_names(shapes, match)


def _normalises(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    # transformers' own classes (LlamaRMSNorm, …) share no base: the name is all there is to know them by
    own = _OTHERS[0] in kinds and type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
    return isinstance(module, kinds) or own


# Walking all modules at every step would cost more than the penalty itself.
_NAMES: WeakKeyDictionary[Run, dict[str | tuple[str, ...], tuple[str, ...]]] = WeakKeyDictionary()


def scales_of(run: Run, match: str | tuple[str, ...]) -> list[Weight]:
    """The scales that this rank holds a part of."""
    match = tuple(match) if isinstance(match, list) else match
    names = _NAMES.setdefault(run, {})
    if match not in names:
        names[match] = tuple(scale_names(run.modules, match))
    return run.weights(names[match]) if names[match] else []
