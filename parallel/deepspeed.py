"""Engine `deepspeed`: ZeRO-0 to -3 by DeepSpeed, weights shown to the trainer as shards of whole rows."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError
from .data_parallel import same_start
from .engine import Inputs, Loss, MakeOptimizer
from .mesh import Mesh
from .microbatches import InHand, cut, row_counts
from .rows import Rows
from .zero import Shares, WholeCopies

_group_of_deepspeed: list[Any] = []  # the process group that DeepSpeed's own globals belong to


class DeepSpeedEngine:
    """Runs a model by DeepSpeed; gradients are summed over micro-batches and ranks, as in the native engine."""

    def __init__(
        self,
        model: nn.Module,
        mesh: Mesh,
        settings: Mapping[str, Any],
        make_optimizer: MakeOptimizer,
        *,
        microbatches: int = 1,
        looked_at: bool = True,
        start: Any = None,
    ) -> None:
        """Give `model` (whole) to DeepSpeed; it is taken over, do not use it after.

        settings: DeepSpeed's own config, complete; the trainer derives it, see `trainer.engine_deepspeed`.
        looked_at: whether techniques look at weights and gradients, see `Rows`.
        start: instead of `deepspeed.initialize`, what gives DeepSpeed's engine for (model, optimizer).
        raises: ConfigError for a model that ZeRO cannot divide.   cost: a broadcast of the model.
        """
        stage = int(settings.get("zero_optimization", {}).get("stage", 0))
        scalars = [name for name, p in model.named_parameters() if p.ndim == 0 and p.requires_grad]
        if scalars and stage > 0:
            raise ConfigError(f"engine deepspeed: {scalars[0]} is a single number; give it the shape [1]")
        self.mesh, self.microbatches, self.stage = mesh, microbatches, stage
        self.home_of_outputs = 0
        self.coordinates: Mapping[str, int] | None = None
        self.masters: Rows | None = None
        model.to(mesh.device)
        self.now = _global_statistics(model, mesh)
        same_start(model, mesh)
        named = dict(model.named_parameters())
        trainable = {name: p for name, p in named.items() if p.requires_grad}
        optimizer = make_optimizer(list(trainable.items()))
        settings = with_bucket(settings, sum(p.numel() for p in trainable.values()))
        self._own_group = _ready(mesh)
        self._engine: Any = (start or _initialize)(model, optimizer, dict(settings))
        self.parts: list[nn.Module] = [model]
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        self._half = next((h for key, h in halves.items() if settings.get(key, {}).get("enabled")), None)
        self._named = named
        self._copies: dict[
            str, nn.Parameter
        ] = {}  # of frozen parameters that ZeRO-3 has divided, as last shown
        if stage > 0:
            kind = Shares if stage == 3 else WholeCopies
            self.masters = Rows(
                trainable,
                kind(self._engine.optimizer, trainable),
                mesh,
                take_step=self._engine.step,
                optimizer=self._engine.optimizer.optimizer,
                looked_at=looked_at,
            )

    def parameters(self) -> dict[str, nn.Parameter]:
        """As `Engine.parameters`: trainable ones as rows, frozen ones whole (with ZeRO-3 in a copy). Collective."""
        if self.masters is None:
            return dict(self._named)
        rows = self.masters.parameters()
        return {
            name: rows[name] if name in rows else self._frozen(name, p) for name, p in self._named.items()
        }

    def _frozen(self, name: str, parameter: Any) -> nn.Parameter:
        if not hasattr(parameter, "ds_id"):
            return parameter
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            self._copies[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        return self._copies[name]

    def written(self, dense: Mapping[str, Tensor] | None = None) -> None:
        """As `Engine.written`."""
        if self.masters is None:
            return
        rows = self.masters.parameters()
        local = {name: _local(row) for name, row in rows.items()}
        self.masters.take(list(rows), {**local, **(dense or {})})
        copies, self._copies = self._copies, {}
        for name, copy in copies.items():
            from deepspeed.runtime.zero import GatheredParameters

            with GatheredParameters([self._named[name]], modifier_rank=0):
                self._named[name].data.copy_(copy)

    def buffers(self) -> dict[str, Tensor]:
        """As `Engine.buffers`."""
        return dict(self.parts[0].named_buffers())

    def modules(self) -> dict[str, nn.Module]:
        """As `Engine.modules`."""
        return {name: module for name, module in self.parts[0].named_modules() if name}

    def zero_grad(self) -> None:
        """As `Engine.zero_grad`."""
        if self.masters is not None:
            self.masters.skip()
        else:
            self._engine.zero_grad()

    def forward_backward(
        self,
        columns: Mapping[str, Tensor],
        valid: Tensor | None,
        inputs: Inputs,
        loss: Loss,
        *,
        global_rows: int | None = None,
    ) -> Tensor:
        """As `Engine.forward_backward`. DeepSpeed divides by the ranks; the loss is multiplied by them."""
        rows = next(iter(columns.values())).shape[0]
        rank, ranks = self.mesh.data_rank, self.mesh.data_ranks
        counts = row_counts(rows, self.microbatches, global_rows=global_rows, rank=rank, ranks=ranks)
        losses = []
        pieces = cut(columns, valid, counts)
        for number, piece in enumerate(pieces, start=1):
            self._engine.set_gradient_accumulation_boundary(number == len(pieces))
            x = inputs(piece.columns)
            self.now.columns, self.now.valid, self.now.seed = piece.columns, piece.valid, float(ranks)
            outputs = self._run(x)
            value = loss(outputs, piece.columns, piece.valid)
            self._engine.backward(value * float(ranks), scale_wrt_gas=False)
            losses.append(value.detach())
        if self.masters is not None:
            self.masters.bring_gradients()
        return torch.stack(losses).sum()

    @torch.no_grad()
    def forward(
        self, columns: Mapping[str, Tensor], inputs: Inputs, valid: Tensor | None = None
    ) -> Any | None:
        """As `Engine.forward`."""
        x = inputs(columns)
        self.now.columns, self.now.valid = columns, valid
        return self._run(x)

    def _run(self, x: Any) -> Any:
        self._engine.training = self.parts[
            0
        ].training  # its own flag; set by `train` it would reach every module
        x = _narrow(x, self._half) if self._half is not None else x
        outputs = self._engine(**x) if isinstance(x, dict) else self._engine(x)
        return _wide(outputs)

    def close(self) -> None:
        """As `Engine.close`; the modules that DeepSpeed has changed for good are put back."""
        if self._engine is None:
            return
        self._engine.destroy()
        _restore_linear()
        self._engine, self.masters, self.parts, self._named = None, None, [], {}
        if self._own_group:
            _forget()
            dist.destroy_process_group()


def with_bucket(settings: Mapping[str, Any], elements: int) -> dict[str, Any]:
    """DeepSpeed's config with a buffer for gradients that is no larger than they are, unless it says its size.

    By default it has room for half a billion of them, 2 GB which are asked for anew in every step.
    elements: of all trainable parameters.
    """
    zero = {"reduce_bucket_size": min(elements, _BUCKET), **settings.get("zero_optimization", {})}
    return {**settings, "zero_optimization": zero}


_BUCKET = 500_000_000  # DeepSpeed's own default, in elements


def _local(row: Any) -> Tensor:
    return (row.to_local() if hasattr(row, "to_local") else row).detach()


def _narrow(x: Any, half: torch.dtype) -> Any:
    """Floating-point inputs in the precision of the weights: DeepSpeed leaves them as they come."""
    if isinstance(x, dict):
        return {key: _narrow(value, half) for key, value in x.items()}
    return x.to(half) if isinstance(x, Tensor) and x.dtype == torch.float32 else x


def _wide(outputs: Any) -> Any:
    """Half-precision outputs in float32, in which the loss is computed."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    if isinstance(outputs, dict):
        for key, value in outputs.items():
            outputs[key] = _wide(value)
    return outputs


def _global_statistics(model: nn.Module, mesh: Mesh) -> InHand:
    if mesh.world == 1:
        return InHand()
    from .batchnorm import make_global

    return make_global(model, mesh)


def _initialize(model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    import deepspeed

    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def _ready(mesh: Mesh) -> bool:
    """DeepSpeed imported and bound to this process group; True where a group of one was made for it."""
    if mesh.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it takes the first GPU that it sees
    os.environ.setdefault(
        "LOCAL_RANK", str(mesh.device.index if mesh.device.index is not None else mesh.rank)
    )
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as operators

    # Compiled at the first use behind a file lock, for which a killed run makes all later ones wait for ever; and it
    # waits for other ranks without a limit.
    operators["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+_tensor` is deprecated.*")
    own = not dist.is_initialized()
    if own:
        backend = "gloo" if mesh.device.type == "cpu" else "nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    here = dist.group.WORLD
    if not _group_of_deepspeed or _group_of_deepspeed[0] is not here:
        _forget()
        _group_of_deepspeed[:] = [here]
    return own


def _forget() -> None:
    """DeepSpeed keeps the process group that it saw first, also when that one is gone."""
    from deepspeed.comm import comm
    from deepspeed.utils import groups

    comm.cdb = None
    groups._release_process_group_references(group=None)
    _group_of_deepspeed.clear()


def _restore_linear() -> None:
    """ZeRO-3 replaces torch's `linear` for the whole process and leaves it so."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Init

    original = getattr(Init, "linear_bk", None)
    if original is not None:
        torch.nn.functional.linear = original
