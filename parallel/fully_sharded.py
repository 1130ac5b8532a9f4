"""Weights, gradients and optimizer state divided over the shard axis: torch FSDP2, also with replicas (HSDP)."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

from ..errors import ConfigError
from .data_parallel import WholeModel
from .layout import Layout
from .mesh import AXES, Mesh


def find_units(module: nn.Module, layout: Layout) -> list[str]:
    """Names of the modules of `module` that become one FSDP unit each, innermost first.

    A unit that shares a parameter with the rest of the model is left to the whole: gathered apart, the two uses
    would become two parameters.   raises: ConfigError where a glob of `layout.units` names no module.
    """
    names = [name for name, _ in module.named_modules() if name]
    chosen = [name for name in layout.order if name in names]
    if layout.units:
        for pattern in layout.units:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"layout.units: {pattern!r} names no module; the model has {', '.join(names)}"
                )
        chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in layout.units)]
    uses: dict[int, int] = {}
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1

    def stands_alone(name: str) -> bool:
        inside: dict[int, int] = {}
        for owner in module.get_submodule(name).modules():
            for parameter in owner.parameters(recurse=False):
                inside[id(parameter)] = inside.get(id(parameter), 0) + 1
        return bool(inside) and all(uses[key] == count for key, count in inside.items())

    return sorted(filter(stands_alone, chosen), key=lambda name: -name.count("."))


def shard_parameters(
    module: nn.Module, layout: Layout, mesh: Mesh, *, keep_whole_in_step: bool = False, offload: bool = False
) -> None:
    """Divide the parameters of `module` in place over mesh.shard × mesh.context, replicated over mesh.replicate.

    Gradients are SUMMED over all these axes. With AVG, gloo adds and does not divide (pytorch issue 162338) on the
    versions that ask it for AVG; a forced sum with the factor 1 is right everywhere.
    keep_whole_in_step: gather once per step instead of once per micro-batch (pipelines).
    offload: shards and their gradients stay in host memory, and go to the device when they are gathered.
    """
    policy = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda") if offload else OffloadPolicy()
    assert mesh.weights_mesh is not None
    data = mesh.weights_mesh
    if mesh.replicate > 1:
        (axis,) = data.mesh_dim_names or ("shard",)
        # torch warns of slicing a flattened axis from the root
        apart = DeviceMesh._concatenate([mesh.axes("replicate"), data]) if axis not in AXES else None
        data = apart or mesh.axes("replicate", axis)
    for name in find_units(module, layout):
        unit = module.get_submodule(name)
        fully_shard(unit, mesh=data, reshard_after_forward=not keep_whole_in_step, offload_policy=policy)
    fully_shard(module, mesh=data, reshard_after_forward=False, offload_policy=policy)
    for unit in fsdp_units(module):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def fsdp_units(module: nn.Module) -> list[FSDPModule]:
    """The modules of `module`, itself included, that FSDP2 manages."""
    return [unit for unit in module.modules() if isinstance(unit, FSDPModule)]


class Sharded(WholeModel):
    """A model that FSDP2 manages. Between steps all parameters are shards; nothing stays gathered."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._units = fsdp_units(module)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """As `WholeModel.alone`."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)

    def release(self) -> None:
        """Free what a forward left gathered: the next forward must see what is written to the shards now."""
        for unit in self._units:
            unit.reshard()
