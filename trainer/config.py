"""One run as one typed value: everything that decides a run, checked where it is made, never changed later.

Reading files and overrides is `config_file`; what people see when something is wrong is `config_errors`.
No heavy library is imported here: the command line reads a config before it knows whether torch is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    model_validator,
)

from .config_errors import refusal
from .config_parts import (
    AugmentConfig,
    BestConfig,
    BucketsConfig,
    CacheConfig,
    CheckpointConfig,
    Count,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    Listed,
    OptimizerConfig,
    PackConfig,
    ParallelConfig,
    Part,
    Precision,
    ScheduleConfig,
    TrackingConfig,
    TransformConfig,
    WandbConfig,
)
from .config_values import check_model

if TYPE_CHECKING:
    from ..compression.technique import Technique

__all__ = [
    "AugmentConfig",
    "BestConfig",
    "BucketsConfig",
    "CacheConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvaluateConfig",
    "ExportConfig",
    "OptimizerConfig",
    "PackConfig",
    "ParallelConfig",
    "PhaseConfig",
    "RunConfig",
    "ScheduleConfig",
    "TechniqueConfig",
    "TrackingConfig",
    "TransformConfig",
    "WandbConfig",
]


class TechniqueConfig(BaseModel):
    """One technique of a phase, written flat: {name: pruning.magnitude, sparsity: 0.8}."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)
    name: str
    """The technique's file under compression/, with a dot: pruning.magnitude."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name: the fields of the technique's dataclass that were given."""
        return dict(self.model_extra or {})

    def build(self) -> Technique:
        """The technique itself. raises: ConfigError (unknown name, field or value). cost: imports torch."""
        from ..compression import registry

        return registry.build(self.name, self.settings)

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> TechniqueConfig:
        from .config_techniques import LATER, check_technique

        if info.context is LATER:
            return self
        problems = check_technique(self.name, self.settings)
        if problems:
            raise refusal(*problems)
        return self


class PhaseConfig(Part):
    """`prepare → train → finalize` of a list of techniques."""

    name: str = "train"
    """How metrics and reports call this phase; different for every phase."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps; 0: only prepare and finalize."""
    epochs: Count | None = None
    """Passes over the data, instead of `steps`."""
    optimizer: OptimizerConfig | None = None
    """Keys that replace those of the run's optimizer."""
    techniques: Annotated[tuple[TechniqueConfig, ...], Listed] = ()

    @field_serializer("optimizer")
    def _only_what_was_given(self, optimizer: OptimizerConfig | None) -> dict[str, Any] | None:
        # With its defaults written out, a phase would override keys of the run that it never named.
        return optimizer and optimizer.model_dump(mode="json", exclude_unset=True)

    @model_validator(mode="after")
    def _one_length(self) -> PhaseConfig:
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else f"steps: {self.steps} and epochs: {self.epochs}"
            raise refusal(((), f"given {given}; want the length of the phase as either steps or epochs"))
        return self


def _as_formats(value: Any) -> Any:
    """`export: [packed]` is short for `export: [{format: packed}]`."""
    if isinstance(value, list | tuple):
        return tuple({"format": entry} if isinstance(entry, str) else entry for entry in value)
    return value


def _some(phases: Any) -> Any:
    # pydantic's own min_length counts the entries that are right, and would call three wrong phases none.
    if isinstance(phases, list | tuple) and not phases:
        raise refusal(((), "given an empty list; want one phase or more, for example [{steps: 500}]"))
    return phases


class RunConfig(Part):
    """A run, whole. Made from YAML by `RunConfig.load`; equal configs give equal runs."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)] = "run"
    """The run's folder; default: the name of the config file."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: Annotated[str | dict[str, Any], BeforeValidator(check_model)]
    """A built-in name, or {name: …}, {transformers: …}, {timm: …}, {factory: "pkg.mod:fn", args: {…}},
    {artifact: FOLDER}"""
    data: DataConfig
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Precision = "fp32"
    phases: Annotated[tuple[PhaseConfig, ...], Listed, BeforeValidator(_some)]
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    export: Annotated[tuple[ExportConfig, ...], Listed, BeforeValidator(_as_formats)] = ()

    @classmethod
    def load(cls, *files: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
        """The config in YAML `files` (later ones win) and `key.sub=value` overrides. raises: ConfigError."""
        from .config_file import load_config

        return load_config(files, overrides)

    @property
    def run_folder(self) -> Path:
        """Everything that this run writes is in here."""
        return Path(self.checkpoint.folder) / self.name

    def on(self, ranks: int) -> RunConfig:
        """The run on so many ranks: a degree of the mesh that is auto becomes a number. raises: ConfigError."""
        parallel = self.parallel.on(ranks)
        return self if parallel is self.parallel else self.model_copy(update={"parallel": parallel})

    def optimizer_of(self, phase: PhaseConfig | int) -> OptimizerConfig:
        """The run's optimizer with the keys that the phase gives.

        A phase that names another optimizer starts from that one's defaults for momentum, nesterov, betas
        and eps: SGD's momentum says nothing about Adam.
        """
        change = (self.phases[phase] if isinstance(phase, int) else phase).optimizer
        if change is None:
            return self.optimizer
        base = self.optimizer.model_dump()
        given = change.model_dump(exclude_unset=True)
        if given.get("name", self.optimizer.name) != self.optimizer.name:
            for key in ("momentum", "nesterov", "betas", "eps"):
                base.pop(key)
        schedule = {**base["schedule"], **given.pop("schedule", {})}
        return OptimizerConfig.model_validate({**base, **given, "schedule": schedule})

    def to_yaml(self) -> str:
        """Every key with its value, as YAML that loads back to an equal config."""
        from .config_yaml import dump

        return dump(self.model_dump(mode="json"))

    @model_validator(mode="before")
    @classmethod
    def _name_phases(cls, value: Any) -> Any:
        phases = value.get("phases") if isinstance(value, dict) else None
        if not isinstance(phases, list | tuple):
            return value
        named = [
            {"name": f"phase-{index}", **phase} if isinstance(phase, dict) else phase
            for index, phase in enumerate(phases)
        ]
        return {**value, "phases": named}

    def _cached_though_augmented(self) -> list[tuple[Any, str]]:
        """Teachers whose answers are kept by row number while the row looks different in every epoch."""
        if self.data.augment is None:
            return []
        return [
            (
                ("phases", index, "techniques", number, "cache"),
                "given true with data.augment: a kept answer would be to another picture; leave one of them out",
            )
            for index, phase in enumerate(self.phases)
            for number, technique in enumerate(phase.techniques)
            if technique.name.startswith("distillation.") and technique.settings.get("cache")
        ]

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        names = [phase.name for phase in self.phases]
        problems: list[tuple[Any, str]] = [
            (("phases", index, "name"), f"given {name!r} a second time; want another name for each phase")
            for index, name in enumerate(names)
            if name in names[:index]
        ]
        problems += self._cached_though_augmented()
        problems += _lengths_that_clash(self)
        problems += _idle_optimizer_keys(self.optimizer, ("optimizer",))
        for index, phase in enumerate(self.phases):
            if phase.optimizer is not None:
                problems += _idle_optimizer_keys(self.optimizer_of(phase), ("phases", index, "optimizer"))
        if problems:
            raise refusal(*problems)
        return self


def _lengths_that_clash(config: RunConfig) -> list[tuple[Any, str]]:
    """What does not go with rows of different lengths."""
    data, parallel = config.data, config.parallel
    problems: list[tuple[Any, str]] = []
    if data.buckets is not None and data.pack is not None:
        problems.append(
            (("data", "buckets"), "given beside data.pack, whose rows have one length: leave one out")
        )
    word = "pack" if data.pack is not None else "buckets"
    if data.buckets is None and data.pack is None:
        return problems
    if data.cache is not None:
        problems.append(
            (
                ("data", "cache"),
                f"given with data.{word}; rows of different lengths are not kept: leave it out",
            )
        )
    if data.pack is not None and data.targets is not None:
        problems.append(
            (("data", "targets"), "given with data.pack, whose targets are the next tokens: leave it out")
        )
    if data.buckets is not None and (parallel.pipeline > 1 or parallel.context > 1):
        problems.append(
            (
                ("data", "buckets"),
                "given with parallel.pipeline or parallel.context, which want one shape for all batches: data.pack, "
                "or rows of one length",
            )
        )
    return problems


def _idle_optimizer_keys(optimizer: OptimizerConfig, path: tuple[str | int, ...]) -> list[tuple[Any, str]]:
    """Keys that this optimizer would silently ignore, as (path, message)."""
    idle = ("betas", "eps") if optimizer.name == "sgd" else ("momentum", "nesterov")
    problems: list[tuple[Any, str]] = []
    for key in idle:
        given, default = getattr(optimizer, key), OptimizerConfig.model_fields[key].default
        if given != default:
            problems.append(((*path, key), f"given {given}; {optimizer.name} has no {key}: leave it out"))
    if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
        problems.append(((*path, "nesterov"), "given true with momentum 0; want momentum above 0"))
    return problems
