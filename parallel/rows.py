"""Weights that ZeRO keeps in flat shares, shown as shards of whole rows, as FSDP2 would hold them, and taken back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .intervals import Exchange, row_intervals
from .mesh import Mesh
from .zero import Partition


class Rows:
    """`Masters` of a ZeRO optimizer.

    looked_at: whether techniques look at weights and gradients. Where none does, gradients stay in DeepSpeed's flat
    shares, and the rows are filled only when somebody asks for `parameters` (a checkpoint); their memory goes then
    with the next step. Else they are there all the time: 4 bytes for each weight of a shard.
    """

    def __init__(
        self,
        named: Mapping[str, Tensor],
        partition: Partition,
        mesh: Mesh,
        *,
        take_step: Callable[[], None],
        optimizer: torch.optim.Optimizer,
        looked_at: bool,
    ) -> None:
        """named: the trainable parameters as they were built, whole shapes by name (only shapes are read)."""
        self.optimizer = optimizer
        self._partition, self._mesh, self._take_step, self.looked_at = partition, mesh, take_step, looked_at
        shapes = {name: _shape(tensor) for name, tensor in named.items()}
        flat = _everyone({name: partition.interval(name) for name in shapes}, mesh)
        rows = {name: row_intervals(shape, mesh.world) for name, shape in shapes.items()}
        group = mesh.axes("shard").get_group() if mesh.world > 1 else None
        place: Any = {"rank": mesh.rank, "group": group, "device": mesh.device}
        self._to_rows, self._to_flat = Exchange(flat, rows, **place), Exchange(rows, flat, **place)
        self._locals = {name: _local(shape, mesh) for name, shape in shapes.items()}
        self._views = {name: _view(self._locals[name], shapes[name], mesh) for name in shapes}
        self._gradients: dict[str, Tensor] = {}
        self._flat_gradients: dict[str, Tensor] = {}
        self._filled = False
        self._fill()

    # ── values

    def look(self, looked_at: bool) -> None:
        """Whether techniques look from now on. Collective."""
        self.looked_at = looked_at
        self._fill()

    def parameters(self) -> dict[str, nn.Parameter]:
        """The rows, filled. Collective where they are not."""
        self._fill()
        return dict(self._views)

    def whole_rows(self, name: str) -> Tensor:
        """As `Masters.whole_rows`."""
        out = torch.empty_like(self._locals[name])
        self._to_rows.move({name: self._partition.master(name)}, {name: out.view(-1)})
        return out

    def _fill(self) -> None:
        if self._filled:
            return
        for local in self._locals.values():
            local.untyped_storage().resize_(local.numel() * local.element_size())
        self._bring(self._partition.master, self._locals)
        self._filled = True

    def _bring(self, flat: Callable[[str], Tensor], rows: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            held = {name: flat(name) for name in rows}
            self._to_rows.move(held, {name: row.view(-1) for name, row in rows.items()})

    # ── a step

    def bring_gradients(self) -> None:
        """After a backward. Collective where techniques look."""
        self._flat_gradients = {name: self._partition.gradient(name) for name in self._locals}
        if not self.looked_at:
            return
        if not self._gradients:
            self._gradients = {name: torch.empty_like(local) for name, local in self._locals.items()}
        wide = {name: flat.float() for name, flat in self._flat_gradients.items()}
        self._bring(wide.__getitem__, self._gradients)

    def gradient(self, name: str) -> Tensor | None:
        """As `Masters.gradient`."""
        if not self._flat_gradients:
            return None
        return self._gradients[name] if self.looked_at else self._flat_gradients[name]

    def step(self) -> None:
        """As `Masters.step`."""
        if self.looked_at:
            self._send(self._gradients, self._flat_gradients)
        self._flat_gradients = {}
        self._take_step()
        if self.looked_at:
            self._bring(self._partition.master, self._locals)
        elif self._filled:
            for local in self._locals.values():
                local.untyped_storage().resize_(0)
            self._filled = False

    def skip(self) -> None:
        """As `Masters.skip`."""
        self._flat_gradients = {}
        self._partition.forget()
        if self.looked_at:  # techniques' working values give way to those that the optimizer goes on from
            self._bring(self._partition.master, self._locals)

    def take(self, changed: Sequence[str], dense: Mapping[str, Tensor]) -> None:
        """As `Masters.take`."""
        if dense:
            self._send(dense, {name: self._partition.master(name) for name in dense})
        if changed:
            empty = {name: torch.empty_like(self._partition.master(name)) for name in changed}
            self._send({name: self._locals[name] for name in changed}, empty)
            self._partition.show(empty)

    def _send(self, rows: Mapping[str, Tensor], flat: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self._to_flat.move({name: rows[name].contiguous().view(-1) for name in flat}, flat)

    # ── the optimizer's state

    def states(self) -> dict[str, Tensor]:
        """As `Masters.states`. cost: memory and communication of the moments of a shard."""
        found = {}
        for key in self._keys():
            rows = {name: torch.empty_like(local) for name, local in self._locals.items()}
            self._bring(lambda name, key=key: self._state(name, key), rows)
            found |= {f"{name}/{key}": row for name, row in rows.items()}
        return found

    def counts(self) -> dict[str, Tensor]:
        """As `Masters.counts`."""
        found = {}
        for name in self._locals:
            state = self.optimizer.state.get(self._partition.flat(name), {})
            if isinstance(state.get("step"), Tensor):
                found[f"{name}/step"] = state["step"].detach().clone()
        return found

    def load_states(self, states: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        """As `Masters.load_states`."""
        self._refuse_other_counts(states, counts)
        keys = list(dict.fromkeys(full.rsplit("/", 1)[1] for full in states))
        if not keys and not counts:
            return
        for flat in self._partition.flats():
            state = self.optimizer.state[flat]
            for key in keys:
                state.setdefault(key, torch.zeros_like(flat.detach()))
        for key in keys:
            given = {full.rsplit("/", 1)[0]: t for full, t in states.items() if full.endswith(f"/{key}")}
            self._send(given, {name: self._state(name, key) for name in given})
        for full, count in counts.items():
            self.optimizer.state[self._partition.flat(full.rsplit("/", 1)[0])]["step"] = (
                count.detach().cpu().clone()
            )
        for flat in self._partition.flats():  # a share without any weight of ours has a count too
            if counts:
                self.optimizer.state[flat].setdefault(
                    "step", next(iter(counts.values())).detach().cpu().clone()
                )

    def _refuse_other_counts(self, states: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        seen: dict[float, str] = {}
        for full, count in counts.items():
            seen.setdefault(float(count), full.rsplit("/", 1)[0])
        missing = [name for name in self._locals if f"{name}/step" not in counts]
        if len(seen) > 1 or (counts and missing):
            new = missing[0] if missing else min(seen.items())[1]
            raise ConfigError(
                f"engine deepspeed: {new} has taken fewer optimizer steps than other weights, but ZeRO counts Adam's "
                "steps once for all; let the phase begin with another optimizer (adamw for adam, or sgd), or use "
                "engine: native"
            )

    def _keys(self) -> list[str]:
        flats = self._partition.flats()
        state = self.optimizer.state.get(flats[0], {}) if flats else {}
        return [key for key, t in state.items() if isinstance(t, Tensor) and t.shape == flats[0].shape]

    def _state(self, name: str, key: str) -> Tensor:
        flat, start = self._partition.flat(name), self._partition.start(name)
        begin, end = self._partition.interval(name)
        return self.optimizer.state[flat][key].detach()[start : start + end - begin]


def _shape(tensor: Any) -> torch.Size:
    return torch.Size(getattr(tensor, "ds_shape", tensor.shape))


def _everyone(mine: dict[str, tuple[int, int]], mesh: Mesh) -> dict[str, list[tuple[int, int]]]:
    everyone: list[Any] = [mine]
    if mesh.world > 1:
        everyone = [None] * mesh.world
        torch.distributed.all_gather_object(everyone, mine)
    return {name: [theirs[name] for theirs in everyone] for name in mine}


def _local(shape: torch.Size, mesh: Mesh) -> Tensor:
    start, end = row_intervals(shape, mesh.world)[mesh.rank]
    size = torch.Size(shape[1:]).numel()
    return torch.empty(((end - start) // max(size, 1), *shape[1:]), device=mesh.device)


def _view(local: Tensor, shape: torch.Size, mesh: Mesh) -> nn.Parameter:
    if mesh.world == 1:
        return nn.Parameter(local)
    from torch.distributed.tensor import DTensor, Shard

    stride = torch.empty(shape, device="meta").stride()
    whole = DTensor.from_local(
        local, mesh.axes("shard"), [Shard(0)], run_check=False, shape=shape, stride=stride
    )
    return nn.Parameter(whole)
