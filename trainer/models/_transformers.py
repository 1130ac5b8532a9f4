"""Models of the transformers library, from a config or with pretrained weights."""

import fnmatch
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...dataloading.packaged import folder_of
from ...errors import ConfigError
from ...parallel.layout import COLUMN_STYLES, Layout
from ._base import BuiltModel, plain, refuse_unknown
from ._libraries import importing
from ._plans import ATTENTION_PLANS, COUNTS, MLP_PLANS
from ._sequences import attention_of

_AUTO_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "image_classification": "AutoModelForImageClassification",
}
_STYLES = {"colwise": "column", "rowwise": "row"}
# Styles of embeddings and heads that may as well be whole on every rank: memory is all that they would save.
_REPLICATED = {"colwise_rep", "colwise_gather_output", "embedding_rowwise", "replicated_with_grad_allreduce"}


def from_transformers(given: Mapping[str, Any], facts: Mapping[str, Any]) -> BuiltModel:
    """{transformers: name or path, task: …, config: {…}, pretrained: …, layers: […]}.

    A name may be package:NAME, a folder that an installed Python package carries. With `config` whose
    `model_type` (or the name) says which, the model is built from it without any file; else `config` are
    changes to the name's own, such as hidden_dropout_prob: 0.0. `pretrained` (default: true without `config`)
    loads weights: safetensors only, and never code from the hub; a head of the task that they lack is new.
    `layers` are the numbers, from 0, of the repeated layers that stay. The number of classes and the vocabulary
    come from the data where `config` does not say them. Weights are float32.
    """
    refuse_unknown("model.transformers", given, ["transformers", "task", "config", "pretrained", "layers"])
    with importing("transformers"):
        import transformers
    name, task = given["transformers"], given.get("task")
    if task not in _AUTO_CLASSES:
        raise ConfigError(f"model.task={task!r} of {name!r}: want one of {', '.join(_AUTO_CLASSES)}")
    pretrained = bool(given.get("pretrained", given.get("config") is None))
    with importing("transformers"):  # the files of this one model are imported only here
        config = _config(transformers, given, facts, pretrained)
        auto = getattr(transformers, _AUTO_CLASSES[task])
        if pretrained and torch.get_default_device().type != "meta":
            module = _pretrained(auto, name, config)
        else:
            module = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    module.train()  # from_pretrained gives it in evaluation mode, from_config in training mode
    resolved = json.loads(config.to_json_string(use_diff=False))
    resolved.pop("_name_or_path", None)  # a folder of this machine says nothing elsewhere
    if kernel := (given.get("config") or {}).get(
        "attn_implementation"
    ):  # the library saves it with no config
        resolved["attn_implementation"] = kernel
    if facts.get("packed"):
        own: Any = module.config
        own.use_cache = False  # else the library lets tokens attend to other documents of their row
    layers = {"layers": list(given["layers"])} if given.get("layers") is not None else {}
    if layers:
        _keep_layers(module, config.num_hidden_layers, layers["layers"])
    shape, dtype = _transformers_input(config, task, facts)
    return BuiltModel(
        module=module,
        layout=_transformers_layout(module, config, task),
        task=f"transformers.{task}",
        spec={"transformers": name, "task": task, "config": resolved, "pretrained": pretrained, **layers},
        input_shape=shape,
        input_dtype=dtype,
        input_range=getattr(config, "vocab_size", 0) if dtype == torch.int64 else 0,
    )


def _config(transformers: Any, given: Mapping[str, Any], facts: Mapping, pretrained: bool) -> Any:
    name, task, settings = given["transformers"], given["task"], given.get("config") or {}
    unset: dict[str, Any] = {}
    if "classification" in task and facts.get("classes") is not None:
        unset["num_labels"] = plain(facts["classes"])
    if not pretrained and facts.get("vocabulary") is not None:
        unset["vocab_size"] = plain(facts["vocabulary"])
        # the library's special tokens lie beyond a small vocabulary, and serve text generation only
        unset |= {"bos_token_id": None, "eos_token_id": None} if task.endswith("_lm") else {}
    if "num_labels" in settings or "id2label" in settings:
        unset.pop("num_labels", None)
    values = {**unset, **settings}
    kind = values.pop("model_type", name)
    is_own = settings and kind in transformers.CONFIG_MAPPING
    try:
        if is_own or (settings and kind != name):
            return transformers.AutoConfig.for_model(kind, **values)
        folder = folder_of(name, "config.json")
        if name.startswith((".", "/", "~")) and not Path(folder).expanduser().exists():
            raise OSError("no such folder")  # the hub would be asked for it, again and again
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **values)
    except (OSError, ValueError, TypeError) as error:
        what = "is refused by transformers" if is_own else "cannot be loaded"
        raise ConfigError(f"model.transformers={kind!r} {what}: {error}") from error


def _pretrained(auto: Any, name: str, config: Any) -> nn.Module:
    """The model with the weights of a folder; what the task's head lacks is new.

    raises: ConfigError where other weights are missing too: they would be random.
    """
    with _quiet():
        module, report = auto.from_pretrained(
            folder_of(name, "config.json"),
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    body = f"{module.base_model_prefix}."
    if lacking := sorted(
        key for key in report["missing_keys"] if key.startswith(body) and "pooler" not in key
    ):
        raise ConfigError(
            f"model.transformers={name!r}: its weights lack {len(lacking)} of this model's, such as {lacking[0]}; want "
            "weights of this model: check config, or leave them random with pretrained: false"
        )
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """The library reports a new head as a warning with a table, and draws a progress bar on every rank."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _keep_layers(module: nn.Module, there: int, layers: list[int]) -> None:
    """Keeps these of the `there` repeated layers, in this order. raises: ConfigError for other numbers."""
    stacks = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == there
    ]
    is_fit = all(type(number) is int and 0 <= number < there for number in layers)
    if not layers or not is_fit or len(set(layers)) != len(layers):
        raise ConfigError(
            f"model.layers={layers!r}: want different numbers from 0 to {there - 1}, such as [0, 2, 4]"
        )
    if len(stacks) != 1:
        raise ConfigError(
            f"model.layers: {type(module).__name__} has {len(stacks)} lists of {there} layers "
            f"({', '.join(stacks)}); want a model with one"
        )
    parent, _, child = stacks[0].rpartition(".")
    old = module.get_submodule(stacks[0])
    kept = nn.ModuleList([old[number] for number in layers])  # pyright: ignore[reportIndexIssue]
    for number, layer in enumerate(kept):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.__dict__["layer_idx"] = number
    setattr(module.get_submodule(parent), child, kept)
    # Modules hold copies of the config, or one and the same.
    held: list[Any] = [part.config for part in module.modules() if hasattr(part, "config")]
    for own in {id(one): one for one in held}.values():
        if getattr(own, "layer_types", None):
            own.layer_types = [own.layer_types[number] for number in layers]
        own.num_hidden_layers = len(layers)


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


def _transformers_layout(module: nn.Module, config: Any, task: str) -> Layout:
    """What transformers says of its own model, its tensor plan (or ours) and the modules not to be split."""
    styles = dict(getattr(module, "_tp_plan", None) or {})
    names = [name for name, _ in module.named_modules()]
    # With any other style (sequence parallel, experts) there is no plan: half of one computes something else.
    understood = set(styles.values()) <= {*_STYLES, *_REPLICATED}
    plan = {
        glob: _STYLES[style]
        for glob, style in styles.items()
        if understood and style in _STYLES and fnmatch.filter(names, glob)
    }
    kind, divisible = config.model_type, dict[str, int]()
    if not styles:
        plan = {**ATTENTION_PLANS.get(kind, {}), **MLP_PLANS.get(kind, {})}
    if any(style in COLUMN_STYLES and glob not in MLP_PLANS.get(kind, {}) for glob, style in plan.items()):
        divisible["attention heads"] = config.num_attention_heads
        divisible["key-value heads"] = (
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        )
    if plan and getattr(config, "intermediate_size", None):
        divisible["mlp features"] = config.intermediate_size
    attention, uncut = attention_of(config, task)
    head, embedding = _head(module, task)
    return Layout(
        tensor_plan=plan,
        counts=COUNTS.get(kind, ()),
        divisible=divisible,
        units=_transformers_units(module),
        attention=attention,
        uncut=uncut,
        head=head,
        embedding=embedding,
    )


def _head(module: nn.Module, task: str) -> tuple[str, str]:
    """Names of the layer that gives logits over the vocabulary and of the embedding that it shares its weight with."""
    held: Any = module
    if not task.endswith("_lm") or not isinstance(held.get_output_embeddings(), nn.Linear):
        return "", ""
    names = {id(part): name for name, part in module.named_modules()}
    head, embedding = held.get_output_embeddings(), held.get_input_embeddings()
    return names[id(head)], names[id(embedding)] if embedding.weight is head.weight else ""


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
