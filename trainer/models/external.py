"""Models of others: transformers, timm and own factories. Their libraries are imported on first use."""

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ...parallel.layout import Layout
from ..imports import load_function
from ._base import BuiltModel, plain, refuse_unknown

_AUTO_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "image_classification": "AutoModelForImageClassification",
}
_STYLES = {"colwise": "column", "rowwise": "row"}
# Styles of embeddings and heads that may as well be whole on every rank: memory is all that they would save.
_REPLICATED = {"colwise_rep", "colwise_gather_output", "embedding_rowwise"}


def from_transformers(given: Mapping[str, Any], facts: Mapping[str, Any]) -> BuiltModel:
    """{transformers: name or path, task: …, config: {…}, pretrained: …}.

    With `config` the model is built from it, without any download (`model_type` there, or the name, says
    which); `pretrained` (default: true without `config`) loads weights: safetensors only, and never code from
    the hub. The number of classes and the vocabulary come from the data where `config` does not say them.
    Weights are float32.
    """
    refuse_unknown("model.transformers", given, ["transformers", "task", "config", "pretrained"])
    with _importing("transformers"):
        import transformers
    name, task = given["transformers"], given.get("task")
    if task not in _AUTO_CLASSES:
        raise ConfigError(f"model.task={task!r} of {name!r}: want one of {', '.join(_AUTO_CLASSES)}")
    pretrained = bool(given.get("pretrained", given.get("config") is None))
    with _importing("transformers"):  # the files of this one model are imported only here
        config = _transformers_config(transformers, given, facts, pretrained)
        auto = getattr(transformers, _AUTO_CLASSES[task])
        if pretrained and torch.get_default_device().type != "meta":
            module = auto.from_pretrained(
                name, config=config, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
        else:
            module = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    module.train()  # from_pretrained gives it in evaluation mode, from_config in training mode
    resolved = json.loads(config.to_json_string(use_diff=False))
    shape, dtype = _transformers_input(config, task, facts)
    return BuiltModel(
        module=module,
        layout=_transformers_layout(module, config),
        task=f"transformers.{task}",
        spec={"transformers": name, "task": task, "config": resolved, "pretrained": pretrained},
        input_shape=shape,
        input_dtype=dtype,
        input_range=getattr(config, "vocab_size", 0) if dtype == torch.int64 else 0,
    )


def _transformers_config(
    transformers: Any, given: Mapping[str, Any], facts: Mapping, pretrained: bool
) -> Any:
    name, task, settings = given["transformers"], given["task"], given.get("config")
    unset: dict[str, Any] = {}
    if "classification" in task and facts.get("classes") is not None:
        unset["num_labels"] = plain(facts["classes"])
    if settings is None:
        try:
            return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **unset)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.transformers={name!r} cannot be loaded: {error}") from error
    if not pretrained and facts.get("vocabulary") is not None:
        unset["vocab_size"] = plain(facts["vocabulary"])
        # the library's special tokens lie beyond a small vocabulary, and serve text generation only
        unset |= {"bos_token_id": None, "eos_token_id": None} if task.endswith("_lm") else {}
    if "num_labels" in settings or "id2label" in settings:
        unset.pop("num_labels", None)
    values = {**unset, **settings}
    kind = values.pop("model_type", name)
    try:
        return transformers.AutoConfig.for_model(kind, **values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.config of {kind!r} is refused by transformers: {error}") from error


def _transformers_input(
    config: Any, task: str, facts: Mapping[str, Any]
) -> tuple[tuple[int, ...], torch.dtype]:
    """One row of input as the data gives it, else as the config says it."""
    if task == "image_classification":
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        return (getattr(config, "num_channels", 3), height, width), torch.float32
    longest = getattr(config, "max_position_embeddings", None) or 128
    return (int(facts.get("length") or min(longest, 128)),), torch.int64


def _transformers_layout(module: nn.Module, config: Any) -> Layout:
    """What transformers says of its own model: its tensor-parallel plan and the modules not to be split."""
    styles = dict(getattr(module, "_tp_plan", None) or {})
    names = [name for name, _ in module.named_modules()]
    # With any other style (sequence parallel, experts) there is no plan: half of one computes something else.
    understood = set(styles.values()) <= {*_STYLES, *_REPLICATED}
    plan = {
        glob: _STYLES[style]
        for glob, style in styles.items()
        if understood and style in _STYLES and fnmatch.filter(names, glob)
    }
    divisible: dict[str, int] = {}
    if plan:
        divisible["attention heads"] = config.num_attention_heads
        divisible["key-value heads"] = (
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        )
        if getattr(config, "intermediate_size", None):
            divisible["mlp features"] = config.intermediate_size
    return Layout(tensor_plan=plan, divisible=divisible, units=_transformers_units(module))


def _transformers_units(module: nn.Module) -> tuple[str, ...]:
    """The modules that transformers does not split, but for those that share a weight with a module outside."""
    whole = set(getattr(module, "_no_split_modules", None) or ())
    holders: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    units = [name for name, part in module.named_modules() if type(part).__name__ in whole]
    shared = [names for names in holders.values() if len(names) > 1]
    return tuple(
        unit for unit in units if all(len({n.startswith(f"{unit}.") for n in names}) == 1 for names in shared)
    )


def from_timm(given: Mapping[str, Any], facts: Mapping[str, Any]) -> BuiltModel:
    """{timm: name, pretrained: false, args: {…}}: an image classifier; `args` go to `timm.create_model`.

    Classes and input channels come from the data where `args` do not say them.
    """
    refuse_unknown("model.timm", given, ["timm", "pretrained", "args"])
    with _importing("timm"):
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
    return BuiltModel(
        module=module,
        layout=Layout(units=units),
        task="classification",
        spec={"timm": name, "pretrained": pretrained, "args": args},
        input_shape=shape,
    )


def _children(module: Any) -> list[tuple[str, nn.Module]]:
    return list(module.named_children()) if isinstance(module, (nn.Sequential, nn.ModuleList)) else []


def from_factory(given: Mapping[str, Any], facts: Mapping[str, Any]) -> BuiltModel:
    """{factory: "package.module:function", args: {…}, task: …}: the function's nn.Module or BuiltModel.

    A module may carry its `layout` (a `Layout`); of an `nn.Sequential` the order is known without one.
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
        layout = Layout(order=_sequential_order(made))
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


@contextmanager
def _importing(library: str) -> Iterator[None]:
    """A failed import becomes a ConfigError that says what to install.

    Both libraries import torchvision, whose compiled part must fit torch: built for another torch, or for CUDA
    beside a CPU torch, it fails at a missing operator, and transformers does so only when a model is first named.
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:
        causes = [error, *_causes(error)]
        if not isinstance(error, ImportError) and "torchvision::" not in str(causes[-1]):
            raise
        hint = (
            "install a torchvision built for this torch (same release, same CPU or CUDA build)"
            if any("torchvision" in str(cause) for cause in causes)
            else "install it with pip install 'forgepress[models]'"
        )
        raise ConfigError(f"model: {library} cannot be imported ({causes[-1]}); {hint}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__) is not None:
        yield cause
        error = cause


EXTERNAL: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], BuiltModel]] = {
    "transformers": from_transformers,
    "timm": from_timm,
    "factory": from_factory,
}
