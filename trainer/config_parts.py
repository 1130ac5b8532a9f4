"""The parts of a run's config: data, mesh, optimizer, evaluation, checkpoints, tracking, export."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..errors import ConfigError
from .config_base import Part
from .config_degrees import AUTO, Derived
from .config_engines import AccelerateConfig, DeepSpeedConfig
from .config_errors import refusal
from .config_values import check_source

Count = Annotated[int, Field(ge=1)]  # how many of something that must exist
Every = Annotated[int, Field(ge=0)]  # optimizer steps between two events; 0 is explained at each field
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Precision = Literal["fp32", "bf16", "fp16"]
Listed = Field(strict=False)  # YAML has lists only; they are kept as tuples, so that a config cannot change


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


class AugmentConfig(Part):
    """What is done at random to pictures of the training split, another way in every epoch."""

    crop: Every = 0
    """Pixels by which the picture may move in each direction; what comes in is 0."""
    flip: bool = False
    """Mirror left and right every second time."""
    area: Annotated[tuple[Positive, Positive] | None, Listed] = None
    """Least and greatest share of the picture that is kept and scaled to its size, such as [0.08, 1]."""
    ratio: Annotated[tuple[Positive, Positive], Listed] = (0.75, 4 / 3)
    """area only: least and greatest width of that part by its height."""


class BucketsConfig(Part):
    """Rows of like length side by side, so that little is padding."""

    window: Count = 8192
    """Shuffled rows that are sorted together."""
    run: Count | None = None
    """Rows of like length that follow each other; empty: the batch."""


class PackConfig(Part):
    """Documents packed into rows of one length, none of their tokens lost. `batch` counts these rows."""

    length: Count
    """Tokens in a row."""
    split: Literal["long", "any"] = "long"
    """long: only documents longer than a row are cut; any: rows are filled to the last token."""
    window: Count = 4096
    """Shuffled documents that are packed together."""
    padding: Every = 0
    """The token that fills up rows."""


class CacheConfig(Part):
    """Rows that are made once. No batch depends on it."""

    memory: Every = 0
    """Bytes; where a share of the rows fits, exactly that share is found there."""
    policy: Literal["kept", "recent"] = "kept"
    """recent: keep the rows that were used last."""
    shared: bool = False
    """One memory for all ranks of a node."""
    folder: str | None = None
    """Also written here once for all runs, as Arrow files with checksums."""
    disk: Every = 17179869184
    """Bytes in `folder`, at most."""


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
    tail: Literal["keep", "drop", "pad", "wrap"] = "keep"
    """The last, shorter batch of an epoch; wrap: filled up with the epoch's first rows."""
    shuffle: bool | Count = True
    """A number: blocks (row groups of streamed Parquet) are shuffled, and rows inside every so many of them."""
    buckets: BucketsConfig | None = None
    """Of rows of different lengths: a batch is as wide as its longest row."""
    pack: PackConfig | None = None
    """Of rows of different lengths: several in a row of the model; targets are the next tokens."""
    prefetch: Annotated[int, Field(ge=0)] = 2
    """Reads prepared ahead of the step; more of them where the step has to wait."""
    threads: Count | None = None
    """That read and transform; empty: 2 where there are cores."""
    mode: Literal["auto", "thread", "process"] = "auto"
    """process: one beside every rank, for functions that hold Python's lock; auto measures."""
    cache: CacheConfig | None = None
    """Of rows that were read and decoded."""
    on_error: Literal["raise", "substitute"] = "raise"
    """A row that cannot be read: stop, or take another one for it, the same on every rank."""
    most_errors: Every = 100
    """substitute only: rows of a rank that may be replaced."""
    function: str | None = None
    """package.module:function, done to every training batch: columns → columns; a second argument draws at random."""
    transform: TransformConfig = TransformConfig()
    augment: AugmentConfig | None = None
    """Draws depend on (seed, epoch, row) alone: the same on every mesh and after a resume."""

    def spec(self) -> dict[str, Any]:
        """These settings as the plain dict that `dataloading.load_source` takes, without empty keys."""
        own = {"threads", "mode", "cache", "on_error", "most_errors", "function"}  # of the Loader
        return self.model_dump(mode="json", exclude_none=True, exclude=own)


class ParallelConfig(Part):
    """The degrees of the mesh. Their product is the number of ranks."""

    engine: Literal["native", "deepspeed", "accelerate"] = "native"
    """Who spreads the model: Forgepress itself on any mesh, or one of the libraries on replicate and shard."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    accelerate: AccelerateConfig = AccelerateConfig()
    replicate: Derived = 1
    """Whole copies of the model (DDP); auto: as many as there are ranks for, anew at each start."""
    shard: Derived = 1
    """Pieces that weights, gradients and moments are cut into (FSDP2), with `context` into shard × context; auto: as
    for replicate."""
    tensor: Count = 1
    """Pieces that single layers are cut into."""
    sequence_parallel: bool = False
    """With `tensor`: between cut layers each rank has a part of the tokens, which takes less memory."""
    loss_parallel: bool = False
    """With `tensor`: the layer that gives the logits is cut by classes, and logits are never gathered in training."""
    pipeline: Count = 1
    """Groups of ranks that hold consecutive parts of the model."""
    context: Count = 1
    """Pieces that sequences are cut into; attention sees the keys and values of the whole."""
    schedule: Literal[
        "gpipe", "1f1b", "interleaved1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv", "dualpipev"
    ] = "1f1b"
    """In which order a pipeline runs micro-batches; all but the first two put two stages or more on each rank."""
    microbatches: Count = 1
    """Equal pieces that a global batch is cut into; gradients are summed over them."""
    stages: Annotated[tuple[Annotated[tuple[str, ...], Listed], ...], Listed] | None = None
    """Globs over module names for each pipeline stage, in order; empty: balanced by cost."""
    tensor_plan: dict[str, Literal["column", "qkv", "row", "replicate"]] | None = None
    """Glob over module names → how the layer is cut; empty: the model's own plan."""
    recompute: Every = 0
    """Activation checkpointing: every n-th block keeps its input only and runs again in the backward; 0: none."""
    precision_by_module: dict[str, Precision] = Field(default_factory=dict)
    """Glob over module names → precision inside of these modules, in place of `precision`; the last match counts."""
    recompute_keep: Annotated[tuple[Literal["matmul", "attention", "convolution"], ...], Listed] = ()
    """Operators whose results such blocks keep beside their input: they run once, the rest runs again."""
    compile: bool = False
    """torch.compile of every block by itself; the first step then takes a minute or so."""
    offload: bool = False
    """Shards, their gradients and moments stay in host memory, and the optimizer runs there (needs shard)."""
    build_once: bool = False
    """Rank 0 alone builds the whole model; the others build shapes and are sent their shards."""
    timeout: Positive = 60.0
    """Seconds that ranks wait for each other before the run stops."""

    @property
    def derived(self) -> str | None:
        """The axis that follows from the number of ranks (auto); None where the config says all of them."""
        return next((axis for axis in ("replicate", "shard") if getattr(self, axis) == AUTO), None)

    @property
    def degrees(self) -> dict[str, int]:
        """Axis → degree for all five axes, in mesh order; an auto that nobody has resolved counts as 1."""
        axes = ("pipeline", "replicate", "shard", "context", "tensor")
        return {axis: getattr(self, axis) or 1 for axis in axes}

    @property
    def ranks(self) -> int:
        """Processes that the degrees need; with auto at least so many, or a multiple of them."""
        return math.prod(self.degrees.values())

    @property
    def weight_pieces(self) -> int:
        """Shards of each weight on a stage: shard × context."""
        return self.shard * self.context

    @property
    def data_ranks(self) -> int:
        """Ranks that see different samples: replicate × shard."""
        degrees = self.degrees
        return degrees["replicate"] * degrees["shard"]

    def on(self, ranks: int) -> ParallelConfig:
        """The same with a number for auto, so that the mesh has `ranks` ranks; itself where nothing is auto.

        raises: ConfigError where the other degrees do not divide `ranks`.
        """
        axis = self.derived
        if axis is None:
            return self
        if ranks % self.ranks:
            others = " × ".join(f"{name} {n}" for name, n in self.degrees.items() if n > 1)
            raise ConfigError(
                f"parallel.{axis}=auto: {others} does not divide {ranks} rank{'s' * (ranks != 1)}; "
                f"start a multiple of {self.ranks} ranks"
            )
        return self.model_copy(update={axis: ranks // self.ranks})

    @model_validator(mode="after")
    def _one_auto(self) -> ParallelConfig:
        if self.replicate == AUTO and self.shard == AUTO:
            raise refusal((("shard",), "given auto, as replicate is; want a number for one of them"))
        return self


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

    format: Literal["safetensors", "packed", "onnx", "torch_int8"]
    """onnx runs with onnxruntime, torch_int8 with torch's integer kernels; both want quantized layers to be fast."""
    operators: Literal["standard", "onnxruntime"] = "standard"
    """onnx only. standard: QDQ, which other runtimes read too; onnxruntime: its own fused operators, faster there."""
    float_layers: Annotated[tuple[str, ...], Listed] = ()
    """onnx and torch_int8: names of quantized layers (with wildcards) that may compute in float after all."""
