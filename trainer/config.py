"""One run as one typed value: everything that decides a run, checked where it is made, never changed later.

Reading files and overrides is `config_file`; what people see when something is wrong is `config_errors`.
No heavy library is imported here: the command line reads a config before it knows whether torch is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, model_validator

from .config_errors import refusal
from .config_values import check_model, check_source

if TYPE_CHECKING:
    from ..compression.technique import Technique

Count = Annotated[int, Field(ge=1)]  # how many of something that must exist
Every = Annotated[int, Field(ge=0)]  # optimizer steps between two events; 0 is explained at each field
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Listed = Field(strict=False)  # YAML has lists only; they are kept as tuples, so that a config cannot change


class Part(BaseModel):
    """A frozen piece of the config. Unknown keys and values of another type ("5" is not 5) are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class TransformConfig(Part):
    """What is done to every input batch: `(x * scale - mean) / std`, then flattened."""

    scale: float | None = None
    """Factor on raw values, 1/255 for pixel bytes."""
    mean: Annotated[tuple[float, ...], Listed] | None = None
    """One number for all channels or one per channel, after `scale`."""
    std: Annotated[tuple[Positive, ...], Listed] | None = None
    """One number for all channels or one per channel, after `scale`."""
    flatten: bool = False
    """Give every sample as one vector."""


class DataConfig(Part):
    """Where samples come from and how they become global batches."""

    source: Annotated[str | dict[str, Any], BeforeValidator(check_source)]
    """A built-in name (digits) or a mapping: {idx: DIR}, {text: FILE, length: 64}, {parquet: GLOB}, …"""
    batch: Count
    """Samples per optimizer step over the whole mesh."""
    inputs: str | None = None
    """Column that goes into the model; empty: the source's own."""
    targets: str | None = None
    """Column with the answers; empty: the source's own."""
    tail: Literal["keep", "drop", "pad"] = "keep"
    """The last, shorter batch of an epoch."""
    shuffle: bool = True
    prefetch: Annotated[int, Field(ge=0)] = 2
    """Batches prepared ahead of the step."""
    transform: TransformConfig = TransformConfig()

    def spec(self) -> dict[str, Any]:
        """These settings as the plain dict that `dataloading.load_source` takes, without empty keys."""
        return self.model_dump(mode="json", exclude_none=True)


class ParallelConfig(Part):
    """The degrees of the mesh. Their product is the number of ranks."""

    engine: Literal["native", "deepspeed", "accelerate"] = "native"
    replicate: Count = 1
    """Whole copies of the model (DDP)."""
    shard: Count = 1
    """Pieces that weights, gradients and moments are cut into (FSDP2)."""
    tensor: Count = 1
    """Pieces that single layers are cut into."""
    pipeline: Count = 1
    """Groups of ranks that hold consecutive parts of the model."""
    context: Count = 1
    """Pieces that sequences are cut into."""
    schedule: Literal["gpipe", "1f1b", "interleaved1f1b"] = "1f1b"
    microbatches: Count = 1
    """Equal pieces that a global batch is cut into; gradients are summed over them."""
    stages: Annotated[tuple[Annotated[tuple[str, ...], Listed], ...], Listed] | None = None
    """Globs over module names for each pipeline stage, in order; empty: balanced by cost."""
    tensor_plan: dict[str, Literal["column", "row", "replicate"]] | None = None
    """Glob over module names → how the layer is cut; empty: the model's own plan."""
    timeout: Positive = 60.0
    """Seconds that ranks wait for each other before the run stops."""

    @property
    def degrees(self) -> dict[str, int]:
        """Axis → degree for all five axes, in mesh order."""
        axes = ("pipeline", "replicate", "shard", "context", "tensor")
        return {axis: getattr(self, axis) for axis in axes}

    @property
    def ranks(self) -> int:
        """Processes that the degrees need."""
        return math.prod(self.degrees.values())

    @property
    def data_ranks(self) -> int:
        """Ranks that see different samples: replicate × shard."""
        return self.replicate * self.shard


class ScheduleConfig(Part):
    """The learning rate over one phase."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    warmup: Every = 0
    """Steps of linear rise from 0."""
    decay: Share = 0.2
    """wsd only: the last share of the phase, in which the rate falls."""
    final: Share = 0.0
    """The rate at the end as a share of `lr`."""


class OptimizerConfig(Part):
    """How weights move. In a phase only the keys written there count (see `RunConfig.optimizer_of`)."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Annotated[float, Field(ge=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """sgd only."""
    nesterov: bool = False
    """sgd only, needs momentum."""
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Listed
    ] = (0.9, 0.999)
    """adam and adamw only."""
    eps: Positive = 1e-8
    """adam and adamw only."""
    clip_norm: Positive | None = None
    """Largest norm of the whole gradient."""
    schedule: ScheduleConfig = ScheduleConfig()
    nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop the run, or skip that step."""


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
    def _known(self) -> TechniqueConfig:
        from .config_techniques import check_technique

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


class BestConfig(Part):
    """Which evaluation is the best one."""

    metric: str
    mode: Literal["max", "min"] = "max"


class EvaluateConfig(Part):
    """When and how held-out samples are evaluated."""

    every: Every = 0
    """Steps between evaluations; 0: at the end of each phase."""
    metrics: Annotated[tuple[str, ...], Listed] = ()
    """accuracy, perplexity or "package.module:function"; empty: those of the task."""
    batch: Count | None = None
    """Samples at a time over the whole mesh; empty: data.batch."""
    best: BestConfig | None = None
    """Empty: the task's own."""


class CheckpointConfig(Part):
    """What is kept of a run, and where."""

    every: Every = 0
    """Steps between checkpoints; 0: at the end of each phase."""
    keep: Count = 2
    """The newest ones that stay on disk."""
    keep_best: bool = True
    """Keep the best one too, whatever its age."""
    asynchronous: bool = True
    """Write in the background, at the price of one more copy of the state in host memory."""
    folder: str = "runs"
    """The run's folder is <folder>/<name>."""


class WandbConfig(Part):
    """Weights & Biases. The key comes from its own login or WANDB_API_KEY: a config never holds secrets."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] = "offline"
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    tags: Annotated[tuple[str, ...], Listed] = ()


class TrackingConfig(Part):
    """Where metrics go, besides metrics.jsonl."""

    wandb: WandbConfig | None = None
    tensorboard: bool = False
    every: Count = 10
    """Steps between two lines of metrics."""


class ExportConfig(Part):
    """One artifact that is written at the end."""

    format: Literal["safetensors", "packed"]


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
    """A built-in name, or {name: …}, {transformers: …}, {timm: …}, {factory: "pkg.mod:fn", args: {…}}"""
    data: DataConfig
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
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

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        names = [phase.name for phase in self.phases]
        problems: list[tuple[Any, str]] = [
            (("phases", index, "name"), f"given {name!r} a second time; want another name for each phase")
            for index, name in enumerate(names)
            if name in names[:index]
        ]
        problems += _idle_optimizer_keys(self.optimizer, ("optimizer",))
        for index, phase in enumerate(self.phases):
            if phase.optimizer is not None:
                problems += _idle_optimizer_keys(self.optimizer_of(phase), ("phases", index, "optimizer"))
        if problems:
            raise refusal(*problems)
        return self


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
