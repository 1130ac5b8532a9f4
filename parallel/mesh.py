"""The mesh: which ranks share a model, which share a batch, and how a number is reduced over some of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import ConfigError

AXES = ("pipeline", "replicate", "shard", "context", "tensor")
DATA_AXES = ("replicate", "shard")
"""Ranks along these have different rows."""
TOKEN_AXES = (*DATA_AXES, "context")
"""Ranks along these have different tokens: losses and gradients add up over them."""
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def degrees_for(degrees: Mapping[str, int], world: int) -> dict[str, int]:
    """All five degrees, checked against the number of ranks.

    degrees: axis → degree; axes left out are 1.   world: ranks that run.
    raises:  ConfigError for an unknown axis, a degree below 1, a product that is not `world`.
    """
    unknown = [name for name in degrees if name not in AXES]
    if unknown:
        raise ConfigError(f"parallel.{unknown[0]}: no such axis; the axes are {', '.join(AXES)}")
    full = {axis: degrees.get(axis, 1) for axis in AXES}
    for axis, degree in full.items():
        if type(degree) is not int or degree < 1:
            raise ConfigError(f"parallel.{axis}={degree!r}: want an integer, 1 (off) or more")
    needed = prod(full.values())
    if needed != world:
        named = " × ".join(f"{axis}={degree}" for axis, degree in full.items() if degree > 1) or "one process"
        raise ConfigError(
            f"parallel: {named} needs {needed} rank{'s' * (needed != 1)}, but {world} "
            f"{'were' if world != 1 else 'was'} launched; change a degree or run with ranks={needed}"
        )
    return full


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Where this process stands among all processes. Made by `Mesh.build`; `Mesh()` is one process."""

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    root: DeviceMesh | None = field(default=None, compare=False)
    """All five axes, degree 1 included: FSDP and TP want a common parent."""
    data_mesh: DeviceMesh | None = field(default=None, compare=False)
    """replicate × shard as one axis, where both are above 1: one all-reduce instead of two."""
    weights_mesh: DeviceMesh | None = field(default=None, compare=False)
    """The one axis that weights are cut over: shard, context, or both flattened into one."""
    _groups: dict[tuple[str, ...], list[dist.ProcessGroup]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def build(cls, degrees: Mapping[str, int], *, device: torch.device | str = "cpu") -> "Mesh":
        """The mesh of the process group that `join` made (none: one process).

        degrees: axis → degree; the rightmost axis (tensor) has neighbouring ranks.
        raises:  ConfigError as `degrees_for`.   cost: a collective where there are several ranks.
        """
        device = torch.device(device)
        together = dist.is_available() and dist.is_initialized()
        world, rank = (dist.get_world_size(), dist.get_rank()) if together else (1, 0)
        full = degrees_for(degrees, world)
        if world == 1:
            return cls(device=device)
        root = init_device_mesh(device.type, tuple(full.values()), mesh_dim_names=AXES)
        both = full["replicate"] > 1 and full["shard"] > 1
        data_mesh = root[DATA_AXES]._flatten("data") if both else None
        cut_by = [axis for axis in ("shard", "context") if full[axis] > 1] or ["shard"]
        name = "_".join(cut_by)
        weights_mesh = root[name] if len(cut_by) == 1 else root[tuple(cut_by)]._flatten(name)
        return cls(
            pipeline=full["pipeline"],
            replicate=full["replicate"],
            shard=full["shard"],
            context=full["context"],
            tensor=full["tensor"],
            rank=rank,
            world=world,
            device=device,
            root=root,
            data_mesh=data_mesh,
            weights_mesh=weights_mesh,
        )

    @property
    def degrees(self) -> dict[str, int]:
        """Axis → degree, all five, outermost first."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def device_mesh(self) -> DeviceMesh | None:
        """The torch mesh of the axes above 1, in the order of `AXES`; None for one process."""
        axes = tuple(axis for axis, degree in self.degrees.items() if degree > 1)
        return self.root[axes] if self.root is not None and axes else None

    @property
    def coordinates(self) -> dict[str, int]:
        """Axis → this rank's index along it, all five."""
        indices, rest = {}, self.rank
        for axis in reversed(AXES):
            rest, indices[axis] = divmod(rest, getattr(self, axis))
        return {axis: indices[axis] for axis in AXES}

    @property
    def data_ranks(self) -> int:
        """Into how many pieces a batch is cut: replicate × shard."""
        return self.replicate * self.shard

    @property
    def data_rank(self) -> int:
        """Which of these pieces is read here."""
        here = self.coordinates
        return here["replicate"] * self.shard + here["shard"]

    @property
    def weight_coordinates(self) -> dict[str, int]:
        """Index of this rank on each axis along which ranks of a stage hold other parts of weights, or copies."""
        here = self.coordinates
        if min(self.shard, self.context) == 1:
            return {axis: here[axis] for axis in ("shard", "context", "tensor")}
        return {
            "shard_context": here["shard"] * self.context + here["context"],
            "tensor": here["tensor"],
        }

    @property
    def first_stage(self) -> bool:
        """Whether the first pipeline stage lives here."""
        return self.coordinates["pipeline"] == 0

    @property
    def last_stage(self) -> bool:
        """Whether the last pipeline stage (outputs and loss) lives here."""
        return self.coordinates["pipeline"] == self.pipeline - 1

    def axes(self, first: str, *more: str) -> DeviceMesh:
        """The torch mesh of just these axes, degree 1 included. Only with several processes."""
        if self.root is None:
            raise RuntimeError("a mesh of one process has no device mesh")
        return self.root[(first, *more) if more else first]

    def groups(self, over: tuple[str, ...] = AXES) -> list[dist.ProcessGroup]:
        """Process groups whose all-reduces, one after the other, reduce over these axes; none where all are 1."""
        if self.root is None:
            return []
        if over not in self._groups:
            self._groups[over] = self._find_groups({axis for axis in over if getattr(self, axis) > 1})
        return self._groups[over]

    def _find_groups(self, wanted: set[str]) -> list[dist.ProcessGroup]:
        assert self.root is not None
        if wanted and prod(getattr(self, axis) for axis in wanted) == self.world:
            return [dist.distributed_c10d._get_default_group()]
        groups = []
        if self.data_mesh is not None and wanted >= set(DATA_AXES):
            groups.append(self.data_mesh.get_group())
            wanted = wanted - set(DATA_AXES)
        return groups + [self.root.get_group(axis) for axis in AXES if axis in wanted]

    def reduce(self, x: Tensor, op: str = "sum", over: tuple[str, ...] = AXES) -> Tensor:
        """`x` reduced over all ranks along `over`; the same bits on each of them.

        x: any shape, the same on all these ranks; it is not changed.   op: "sum", "max" or "min".
        returns: a new tensor, or `x` itself where there is nobody to reduce with.   cost: one all-reduce as a
        rule, at most one per axis; nothing where all degrees along `over` are 1.
        """
        if self.world == 1:
            return x
        groups = self.groups(over)
        if not groups:
            return x
        x = x.detach().clone()
        for group in groups:
            dist.all_reduce(x, _OPERATIONS[op], group=group)
        return x
