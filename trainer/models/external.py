"""Models of others: transformers, timm and own factories. Their libraries are imported on first use."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ...parallel.layout import Layout
from ..imports import load_function
from ._artifact import from_artifact
from ._base import BuiltModel, plain, refuse_unknown
from ._libraries import importing
from ._plans import heads_found, pairs_found
from ._transformers import from_transformers


def from_timm(given: Mapping[str, Any], facts: Mapping[str, Any]) -> BuiltModel:
    """{timm: name, pretrained: false, args: {…}}: an image classifier; `args` go to `timm.create_model`.

    Classes and input channels come from the data where `args` do not say them.
    """
    refuse_unknown("model.timm", given, ["timm", "pretrained", "args"])
    with importing("timm"):
        import timm  # pyright: ignore[reportMissingImports] (an extra that few install)
    name, pretrained = given["timm"], bool(given.get("pretrained", False))
    args: dict[str, Any] = {}
    if facts.get("classes") is not None:
        args["num_classes"] = plain(facts["classes"])
    if len(facts.get("input_shape") or ()) == 3:
        args["in_chans"] = plain(facts["input_shape"])[0]
    args |= given.get("args") or {}
    try:
        module = timm.create_model(name, pretrained=pretrained, **args)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"model.timm={name!r} with args {args!r} is refused by timm: {error}") from error
    shape = tuple(plain(facts["input_shape"])) if facts.get("input_shape") is not None else None
    if shape is None or len(shape) != 3:
        settings: Mapping[str, Any] = getattr(module, "default_cfg", {})
        channels, height, width = settings.get("input_size", (3, 224, 224))
        shape = (args.get("in_chans", channels), height, width)
    units = tuple(
        f"{name}.{child}"
        for name in ("blocks", "stages")
        for child, _ in _children(getattr(module, name, None))
    )
    plan, divisible, counts = heads_found(module)
    return BuiltModel(
        module=module,
        layout=Layout(
            units=units, tensor_plan=plan | pairs_found(module), divisible=divisible, counts=counts
        ),
        task="classification",
        spec={"timm": name, "pretrained": pretrained, "args": args},
        input_shape=shape,
    )


def _children(module: Any) -> list[tuple[str, nn.Module]]:
    return list(module.named_children()) if isinstance(module, (nn.Sequential, nn.ModuleList)) else []


def from_factory(given: Mapping[str, Any], facts: Mapping[str, Any]) -> BuiltModel:
    """{factory: "package.module:function", args: {…}, task: …}: the function's nn.Module or BuiltModel.

    A module may carry its `layout` (a `Layout`); without one the order is known of an `nn.Sequential`, and the tensor
    axis divides pairs of linear layers with nothing but elementwise modules between them.
    """
    refuse_unknown("model.factory", given, ["factory", "args", "task"])
    path, args = given["factory"], dict(given.get("args") or {})
    made = load_function(path, "model.factory")(**args)
    task = given.get("task")
    spec = {"factory": path, "args": args, **({"task": task} if task else {})}
    if isinstance(made, BuiltModel):
        return replace(made, spec=spec, task=task or made.task)
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"model.factory={path!r} returned {type(made).__name__}; want nn.Module or BuiltModel"
        )
    layout = getattr(made, "layout", None)
    if not isinstance(layout, Layout):
        layout = Layout(order=_sequential_order(made), tensor_plan=pairs_found(made))
    language = task is not None and task.endswith("_lm")
    fact = (facts["length"],) if language and facts.get("length") else facts.get("input_shape")
    return BuiltModel(
        module=made,
        layout=layout,
        task=task or "classification",
        spec=spec,
        input_shape=None if fact is None else tuple(plain(fact)),
        input_dtype=torch.int64 if language else torch.float32,
        input_range=int(facts.get("vocabulary") or 0) if language else 0,
    )


def _sequential_order(module: nn.Module) -> tuple[str, ...]:
    composed = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return tuple(name for name, _ in module.named_children()) if composed else ()


EXTERNAL: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], BuiltModel]] = {
    "transformers": from_transformers,
    "timm": from_timm,
    "factory": from_factory,
    "artifact": from_artifact,
}
