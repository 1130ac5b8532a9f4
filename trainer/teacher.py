"""Teachers on the mesh: spread as the student is, without gradients, their answers brought where they are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..compression import Technique
from ..compression.distillation import Teacher, Want
from ..errors import ConfigError
from ..parallel import Engine, Mesh, NativeEngine
from ..parallel.features import whole_features
from .config import RunConfig
from .precision import compute_in
from .sequences import inputs_on
from .tasks import task_for
from .teacher_fit import with_plan
from .teacher_model import Spec, teacher_model


class Teachers:
    """All teachers of a phase, by what techniques call them: the `teacher` of the trainer's runs."""

    def __init__(
        self,
        techniques: Sequence[Technique],
        config: RunConfig,
        mesh: Mesh,
        facts: Mapping[str, Any],
        student: Engine,
    ) -> None:
        """Nothing is built before `load`: what only looks at a run needs no teacher."""
        asking: dict[str, list[Any]] = {}
        for technique in techniques:
            if technique.needs_teacher:
                asking.setdefault(_key(getattr(technique, "teacher", None)), []).append(technique)
        self._all = {
            key: SpreadTeacher(
                these[0].teacher, config, mesh, facts, student, cached=all(t.cache for t in these)
            )
            for key, these in asking.items()
        }

    def __call__(self, spec: Spec) -> SpreadTeacher:
        """The teacher that a technique's `teacher` means."""
        return self._all[_key(spec)]

    def load(self) -> None:
        """Build them and spread them over the mesh, but for those whose answers are all known. Collective."""
        for teacher in self._all.values():
            teacher.load()

    def see(self, rows: Tensor, epoch: int) -> None:
        """Which rows of the data the next step has."""
        for teacher in self._all.values():
            teacher.see(rows, epoch)

    def close(self) -> None:
        """Let all of them go."""
        for teacher in self._all.values():
            teacher.close()
            teacher.release()

    @property
    def bytes(self) -> int:
        """Of weights and buffers on this rank."""
        return sum(teacher.bytes for teacher in self._all.values())


class SpreadTeacher(Teacher):
    """A teacher on an engine of its own, on the student's mesh."""

    def __init__(
        self,
        spec: Spec,
        config: RunConfig,
        mesh: Mesh,
        facts: Mapping[str, Any],
        student: Engine,
        *,
        cached: bool,
    ) -> None:
        # A pipeline cuts micro-batches itself.
        super().__init__(None, microbatches=1 if mesh.pipeline > 1 else config.parallel.microbatches)
        self._spec, self._config, self._mesh, self._facts = spec, config, mesh, facts
        self._cached, self._count = cached, int(facts.get("rows", 0))
        self._ours, self._outputs_at = set(student.modules()), student.home_of_outputs
        self._engine: NativeEngine | None = None
        self._homes: tuple[dict[str, int], dict[str, int]] = ({}, {})  # of modules: teacher's, student's
        self._forms: dict[str, tuple[torch.Size, torch.dtype]] = {}
        here = mesh.coordinates
        self.writes, self.first = here["tensor"] == 0, mesh.rank == 0

    def load(self) -> None:
        """Build it whole, spread it, and keep this rank's part. Collective."""
        if self._engine is not None or self._complete:
            return
        built = teacher_model(self._spec, self._config, self._facts)
        if self._cached:
            name = self._agreed_text(lambda: _mark(built.module, self._spec, self._config, self._facts))
            self._folder = self._config.run_folder / "teacher-cache" / name
        self._inputs = inputs_on(task_for(built.task), built.layout.attention, self._mesh)
        self._engine = spread(built, self._config, self._mesh)
        self._homes = self._find_homes(set(self._engine.modules()), self._ours)
        for want in self._wants.values():
            self._watch(want)

    @property
    def loaded(self) -> bool:
        """Whether its part is here."""
        return self._engine is not None

    @property
    def bytes(self) -> int:
        """Of weights and buffers on this rank: its shard."""
        if self._engine is None:
            return 0
        held = [*self._engine.parameters().values(), *self._engine.buffers().values()]
        return sum(local.numel() * local.element_size() for local in map(_local, held))

    def forward(self, columns: Mapping[str, Tensor]) -> Any | None:
        """Outputs on the last stage. Collective."""
        if self._engine is None:
            self.load()
        assert self._engine is not None
        return self._engine.forward(columns, self._inputs)

    def held(self, module: str) -> nn.Module | None:
        """The live module, where this rank's stage has it."""
        assert self._engine is not None
        found = self._engine.modules().get(module)
        if found is None and module not in self._homes[0]:
            raise ConfigError(f"the teacher has no module {module!r} on any stage; name one that runs")
        return found

    def whole(self, module: nn.Module, output: Tensor) -> Tensor:
        """Gathered where the tensor axis divides it. Collective over that axis."""
        return whole_features(module, output)

    def carry(self, want: Want, value: Tensor | None, rows: int) -> Tensor | None:
        """To the student's stage, in the order in which columns were asked for: all ranks know it."""
        mesh, source, target = self._mesh, self._source(want), self._target(want)
        here = mesh.coordinates["pipeline"]
        if source == target:
            return value if here == target else None
        group = mesh.axes("pipeline").get_group()
        if want.column not in self._forms:
            box: list[Any] = [None if value is None else (value.shape, value.dtype)]
            dist.broadcast_object_list(box, group=group, group_src=source)
            self._forms[want.column] = box[0]
        if here == source:
            assert value is not None
            dist.send(value.contiguous(), group=group, group_dst=target)
        if here != target:
            return None
        (_, *rest), dtype = self._forms[want.column]
        value = torch.empty((rows, *rest), dtype=dtype, device=mesh.device)
        dist.recv(value, group=group, group_src=source)
        return value

    def answered(self, columns: Mapping[str, Tensor], step: int) -> bool:
        """Once a step, with all its micro-batches; what is not needed here is no column here."""
        return self.step == step

    def needed(self, want: Want) -> bool:
        """Whether the student's module lives here."""
        return self._target(want) == self._mesh.coordinates["pipeline"]

    def agree(self, flag: bool) -> bool:
        """Over all ranks of the mesh."""
        return bool(self._mesh.reduce(torch.tensor(int(flag), device=self._mesh.device), "min"))

    def release(self) -> None:
        """Let the engine and its memory go."""
        while self._hooks:
            self._hooks.pop().remove()
        self._engine = None

    def _source(self, want: Want) -> int:
        if want.module is not None:
            return self._homes[0][want.module]
        assert self._engine is not None
        return self._engine.home_of_outputs

    def _target(self, want: Want) -> int:
        return self._outputs_at if want.at is None else self._homes[1][want.at]

    def _find_homes(self, theirs: set[str], ours: set[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Module → the pipeline rank that has it; modules that are on several (containers) run on none of them."""
        everyone: list[Any] = [(theirs, ours)]
        if self._mesh.pipeline > 1:
            everyone = [None] * self._mesh.pipeline
            dist.all_gather_object(everyone, (theirs, ours), group=self._mesh.axes("pipeline").get_group())
        return _alone([t for t, _ in everyone]), _alone([o for _, o in everyone])

    def _agreed_text(self, make: Any) -> str:
        box = [make() if self._mesh.rank == 0 else ""]
        if self._mesh.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


def spread(built: Any, config: RunConfig, mesh: Mesh) -> NativeEngine:
    """An engine for a teacher: cut as the config says for the student, frozen, in evaluation mode.

    raises: ConfigError where the teacher cannot be cut so.
    """
    parallel = config.parallel
    built = with_plan(built, config)
    built = built.cuttable() if mesh.pipeline > 1 else built
    built.module.requires_grad_(False)
    try:
        engine = NativeEngine(
            built.module,
            built.layout,
            mesh,
            schedule=parallel.schedule,
            microbatches=parallel.microbatches,
            costs=built.stage_costs() if mesh.pipeline > 1 else None,
        )
    except ConfigError as error:
        raise ConfigError(f"teacher: {error}") from error
    for part in engine.parts:
        part.eval()
        compute_in(part, config.precision, mesh.device)
    return engine


def _alone(names: Sequence[set[str]]) -> dict[str, int]:
    counts: dict[str, list[int]] = {}
    for rank, held in enumerate(names):
        for name in held:
            counts.setdefault(name, []).append(rank)
    return {name: ranks[0] for name, ranks in counts.items() if len(ranks) == 1}


def _mark(module: nn.Module, spec: Spec, config: RunConfig, facts: Mapping[str, Any]) -> str:
    """Of all that decides what a teacher says of a row: its weights, the data, the precision."""
    digest = hashlib.sha256()
    data = config.data.model_dump(mode="json", include={"transform", "inputs", "targets"})
    said = [_key(spec), facts.get("fingerprint"), facts.get("rows"), data, config.precision, str(module)]
    digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _key(spec: Any) -> str:
    return json.dumps(spec, sort_keys=True, default=str)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]
