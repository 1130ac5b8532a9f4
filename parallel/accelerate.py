"""Engine `accelerate`: Hugging Face Accelerate prepares the model (DDP or FSDP2) as the user's own config says."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .batchnorm import make_global
from .data_parallel import WholeModel, same_start
from .fully_sharded import Sharded, fsdp_units
from .mesh import Mesh
from .microbatches import InHand
from .native import NativeEngine


class AccelerateEngine(NativeEngine):
    """A model that `Accelerator.prepare` has wrapped; passes and sums are those of the native engine."""

    def __init__(
        self,
        model: nn.Module,
        mesh: Mesh,
        *,
        mixed_precision: str = "no",
        fsdp: Mapping[str, Any] | None = None,
        microbatches: int = 1,
    ) -> None:
        """Give `model` (whole) to Accelerate; it is taken over, do not use it after.

        mixed_precision: "no", "bf16" or "fp16".   fsdp: keywords of Accelerate's FSDP plug-in (version 2); None: DDP.
        raises: ConfigError for what Accelerate refuses.   cost: a broadcast of the model.
        """
        self.mesh, self.microbatches = mesh, microbatches
        model.to(mesh.device)
        self.now = make_global(model, mesh) if mesh.world > 1 else InHand()
        same_start(model, mesh)
        prepared = _prepare(model, mesh, mixed_precision, fsdp)
        if fsdp is not None and mesh.world > 1:
            whole: WholeModel = _summing(prepared)
        else:
            whole = Prepared(model, prepared, mesh.data_ranks)
        self.parts, self._whole, self._first, self._pipeline = [whole.module], [whole], whole, None
        self._parameters, self._summed = dict(whole.module.named_parameters()), []
        # Accelerate names no axis of the mesh that it makes for FSDP; replicas hold the same and count for themselves.
        self._place = {"axis0": mesh.rank} if fsdp is not None else {}

    @property
    def coordinates(self) -> Mapping[str, int]:
        """As `Engine.coordinates`."""
        return self._place

    def close(self) -> None:
        """As `Engine.close`; Accelerate's state, one for the whole process, is forgotten."""
        super().close()
        _forget()


class Prepared(WholeModel):
    """A model that Accelerate has put into DDP, or left as it is on one rank."""

    def __init__(self, module: nn.Module, prepared: Any, ranks: int) -> None:
        super().__init__(module)
        self.call, self._prepared = prepared, prepared
        self.seed = float(ranks) if prepared is not module else 1.0  # DDP divides by the ranks

    def backward(self, loss: Tensor) -> None:
        """As `WholeModel.backward`."""
        loss.backward(torch.full_like(loss, self.seed))

    def alone(self) -> AbstractContextManager:
        """As `WholeModel.alone`."""
        return self._prepared.no_sync() if self._prepared is not self.module else super().alone()


def _summing(prepared: Any) -> Sharded:
    """FSDP2 as Accelerate has set it up, its gradients summed instead of averaged."""
    for unit in fsdp_units(prepared):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    return Sharded(prepared)


def _prepare(model: nn.Module, mesh: Mesh, mixed_precision: str, fsdp: Mapping[str, Any] | None) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        DistributedType,
        FullyShardedDataParallelPlugin,
    )

    _forget()
    on_cpu = mesh.device.type == "cpu"
    with _as_launched(mesh):
        try:
            plugin = None if fsdp is None else FullyShardedDataParallelPlugin(fsdp_version=2, **fsdp)
            accelerator = Accelerator(
                cpu=on_cpu,
                mixed_precision=mixed_precision,
                fsdp_plugin=None if on_cpu else plugin,
                # Statistics are global here, so that buffers are equal already.
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            )
        except (ValueError, ImportError, TypeError) as error:
            raise ConfigError(f"engine accelerate: {error}") from error
    state: Any = accelerator.state
    if plugin is not None and on_cpu and mesh.world > 1:
        # Accelerate takes FSDP for a matter of GPUs; torch's FSDP2, and Accelerate's own way to it, know no difference.
        if mixed_precision != "no":
            plugin.set_mixed_precision(mixed_precision)
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    if plugin is not None and mesh.world > 1:
        unused = torch.optim.SGD(
            model.parameters(), lr=0.0
        )  # FSDP2 is prepared together with an optimizer only
        return accelerator.prepare(model, unused)[0]
    return accelerator.prepare(model)


@contextmanager
def _as_launched(mesh: Mesh) -> Iterator[None]:
    """The environment that `accelerate launch` would have made, as far as it is read."""
    local = mesh.device.index if mesh.device.index is not None else mesh.rank
    wanted = {
        "RANK": mesh.rank,
        "WORLD_SIZE": mesh.world,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": mesh.world,
        "MASTER_ADDR": "localhost",  # read, not used: the ranks have met already
        "OMP_NUM_THREADS": torch.get_num_threads(),
    }
    before = dict(os.environ)
    for name, value in wanted.items():
        os.environ.setdefault(name, str(value))
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _forget() -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
