"""What every model file shares: the settings of a model, the built model, and sizes taken from the data."""

import dataclasses
import difflib
import json
import operator
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from ...errors import ConfigError
from ...parallel.layout import Layout

Size = Annotated[int, Field(ge=1, strict=True)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A model with what the rest of a run needs to know of it."""

    module: nn.Module
    layout: Layout
    task: str
    """Name of the task for `task_for`: "classification", "causal_lm", "transformers.masked_lm", …"""
    spec: dict[str, Any]
    """JSON-able and fully resolved: `build_model(spec)` gives the same shapes without facts of the data."""
    input_shape: tuple[int, ...] | None = None
    """One row of input; None where the model does not say it (an own factory without data)."""
    input_dtype: torch.dtype = torch.float32
    input_range: int = 0
    """For integer inputs: values lie in [0, input_range)."""

    def example(self, rows: int, *, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """Positional inputs of the right shape and dtype for `rows` rows, all zeros; on "meta" at no cost.

        raises: ConfigError where the shape of an input is unknown.
        """
        if self.input_shape is None:
            raise ConfigError(
                "model: the shape of an input is unknown; want the facts of the data (data.source), "
                "or a factory that returns a BuiltModel with input_shape"
            )
        return (torch.zeros(rows, *self.input_shape, dtype=self.input_dtype, device=device),)

    def cuttable(self) -> "BuiltModel":
        """The same model with a layout that says where a pipeline may cut it, if that is not known and can be found."""
        from ...parallel.links import find_links

        if self.layout.cuts or self.input_shape is None:
            return self
        device = next(self.module.parameters()).device

        def run(model: nn.Module, mode: Any) -> Any:
            return model(*self.example(2, device=device))

        try:
            links = find_links(self.module, run)
        except Exception:  # whatever a model does on shapes alone; the engine then lists its modules
            return self
        return dataclasses.replace(self, layout=dataclasses.replace(self.layout, links=links))

    def summed(
        self, tensor_plan: Mapping[str, str], degree: int, gathered: frozenset[str]
    ) -> tuple[str, ...]:
        """The parameters whose gradients must be added over the tensor axis; see `find_between`.

        raises: ConfigError where the model cannot go on with a part of the features, or that cannot be found out.
        """
        from ...parallel.between import find_between

        device = next(self.module.parameters()).device

        def run(model: nn.Module, mode: Any) -> Any:
            return model(*self.example(2, device=device))

        return find_between(self.module, tensor_plan, degree, run, gathered, self.layout.counts)

    def stage_costs(self) -> list[float] | None:
        """Forward FLOPs of each member of the order, for a balanced cut into stages; None without an order."""
        from ...parallel.split import module_costs

        if not self.layout.order:
            links = (
                self.layout.links
            )  # without any, the engine says which module names there are to choose from
            return list(links.costs) if links is not None else None
        first = next(self.module.parameters(), None)
        here = "cpu" if first is None else first.device
        example = self.example(1, device=here)[0] if self.input_shape is not None else None
        return module_costs(self.module, self.layout, example)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(ABC):
    """Settings of one built-in model: fields are what a config may say; `build` makes the model from them.

    A size that is None is taken from the data (`facts`: field → name of the fact).
    """

    facts: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def build(self) -> BuiltModel:
        """Makes the module with torch's global generator; `spec` is left empty, the caller fills it in."""


def resolve(
    name: str, kind: type[ModelSettings], given: Mapping[str, Any], data: Mapping[str, Any]
) -> ModelSettings:
    """Checked settings of the model `name` from what the config gives and, for unset sizes, from the data.

    raises: ConfigError naming an unknown setting and the nearest known one, a wrong value, or a size that
    neither the config nor the data gives.
    """
    fields = {setting.name: setting for setting in dataclasses.fields(kind)}
    refuse_unknown(f"model {name}", given, fields)
    values = {key: value for key, value in given.items() if value is not None}
    taken = {key: plain(data[fact]) for key, fact in kind.facts.items() if data.get(fact) is not None}
    values = {**taken, **values}
    for key, fact in kind.facts.items():
        if key not in values and fields[key].default is dataclasses.MISSING:
            raise ConfigError(
                f"model {name}: {key} is not given and the data has no fact {fact!r} to tell it; set model.{key}"
            )
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        key = str(first["loc"][0])
        source = (
            ""
            if key in given or key not in taken
            else f"; it is a fact of the data, set model.{key} yourself"
        )
        raise ConfigError(
            f"model {name}: {where}: {first['msg']}, given {values.get(key)!r}{source}"
        ) from None


def plain(fact: Any) -> Any:
    """A fact of the data as Python integers: sources may say them as NumPy numbers or a torch.Size."""
    return [operator.index(size) for size in fact] if isinstance(fact, Iterable) else operator.index(fact)


def as_spec(name: str, settings: ModelSettings) -> dict[str, Any]:
    """Settings as the plain JSON value that rebuilds the same model."""
    return {"name": name, **json.loads(json.dumps(dataclasses.asdict(settings)))}


def refuse_unknown(what: str, given: Mapping[str, Any], known: Mapping[str, Any] | list[str]) -> None:
    """raises: ConfigError for the first key of `given` that is not in `known`, with the nearest known one."""
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{what}: unknown setting {key!r}{nearest(key, known)}; known: {', '.join(known)}"
            )


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """`, did you mean 'x'?` for the known word nearest to `word`, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights made inside depend on `seed` alone; the global generators (torch, NumPy, Python) are put back.

    Only the CPU generator is seeded: models are made on the CPU, so every device starts from the same bits.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every accelerator
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class AsImage(nn.Module):
    """[B, C*H*W] or [B, C, H, W] → [B, C, H, W]."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[0], *self.shape)

    def extra_repr(self) -> str:
        return str(self.shape)
