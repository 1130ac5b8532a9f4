"""Whether teachers are there, fit their students, can be cut as the mesh wants, and how much of them a rank holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..dataloading import Source
from ..errors import ConfigError
from .config import RunConfig
from .config_errors import Path
from .models import BuiltModel, build_model
from .preflight_memory import MemoryRow, held_by_fullest_rank
from .preflight_rules import Found, check_pipeline, check_tensor
from .teacher_fit import Seen, fit_one, look, with_plan
from .teacher_model import refuse_unknown_keys, teacher_model, teacher_phase


class Classroom:
    """Looks at the teachers of all phases; a technique that is called with it comes back knowing both models."""

    def __init__(self, config: RunConfig, built: BuiltModel, source: Source | None, found: Found) -> None:
        """built: the student, on the meta device; it is looked at as it is when a technique is asked about."""
        from ..dataloading import facts

        self._config, self._built, self._found = config, built, found
        self._facts: Mapping[str, Any] = facts(source) if source is not None else {}
        self._seen: dict[str, Seen] = {}
        self._bytes: dict[int, dict[str, int]] = {}

    def __call__(self, technique: Any, phase: int, path: Path) -> Any | None:
        """The technique fitted to student and teacher; None where they do not go together, which is then said."""
        here = (*path, "teacher")
        try:
            self._refuse_cache(technique)
            key = json.dumps(technique.teacher, sort_keys=True)
            if technique.teacher is not None and key not in self._seen:
                self._seen[key] = look(self._maker(technique.teacher, phase))
            theirs = self._seen.get(key)
            if theirs is not None:
                self._bytes.setdefault(phase, {})[key] = self._share(theirs.built, here)
            ours = look(self._student)
            fitted = fit_one(technique, ours, self._config, self._facts, theirs)
            self._refuse_outside_stages(technique, ours.built, theirs)
            return fitted
        except ConfigError as error:
            self._found.problem(here if "teacher" in str(error) else path, str(error))
        return None

    @property
    def memory(self) -> tuple[MemoryRow, ...]:
        """Bytes of the teachers on the fullest rank, in the phase that has most; () without teachers."""
        most = max((sum(phase.values()) for phase in self._bytes.values()), default=0)
        row = MemoryRow(what="teacher", bytes=most, how="4 bytes a weight, cut as the student is")
        return (row,) if most else ()

    def _student(self, device: str) -> BuiltModel:
        if device == "meta":
            return self._built
        return self._fresh(device)

    def _fresh(self, device: str) -> BuiltModel:
        return build_model(self._config.model, seed=self._config.seed, data=self._facts, device=device)

    def _maker(self, spec: Any, phase: int) -> Any:
        name = teacher_phase(spec)
        if name is None:
            return partial(teacher_model, spec, self._config, self._facts, like=self._built)
        refuse_unknown_keys(spec, "phase")
        earlier = [each.name for each in self._config.phases[:phase]]
        if name not in earlier:
            known = f"; earlier phases are {', '.join(earlier)}" if earlier else "; this is the first phase"
            raise ConfigError(f"teacher {{phase: {name}}}: want the name of a phase before this one{known}")
        # As the phase begins with it: what its techniques remove at its end is not known beforehand.
        return self._fresh

    def _refuse_cache(self, technique: Any) -> None:
        augment = self._config.data.augment
        if technique.cache and augment is not None and (augment.crop or augment.flip or augment.area):
            raise ConfigError(
                "cache: true keeps what the teacher says of a row, but data.augment gives a row another form in every "
                "epoch; leave one of them out"
            )

    def _share(self, built: BuiltModel, path: Path) -> int:
        """Bytes on the fullest rank; what the engine would refuse is said at `path`."""
        built = with_plan(built, self._config)
        built = built.cuttable() if self._config.parallel.pipeline > 1 else built
        parallel = self._config.parallel.model_copy(update={"stages": None, "tensor_plan": None})
        config = self._config.model_copy(update={"parallel": parallel})
        found = Found()
        plan = check_tensor(config, built, found)
        stages = check_pipeline(config, built, plan, found)
        for problem in found.problems:
            self._found.problem(path, f"teacher: {problem.message}")
        held = held_by_fullest_rank(config, built, plan, stages)
        return 4 * held.total + held.buffer_bytes

    def _refuse_outside_stages(self, technique: Any, student: BuiltModel, teacher: Seen | None) -> None:
        if self._config.parallel.pipeline == 1 or teacher is None:
            return
        pairs = technique.modules()
        for who, built, names in (("student", student, pairs), ("teacher", teacher.built, pairs.values())):
            order = built.cuttable().layout.cuts
            for name in names:
                if not any(name == member or name.startswith(f"{member}.") for member in order):
                    raise ConfigError(
                        f"layers: the {who}'s module {name!r} is on no pipeline stage; want one of "
                        f"{', '.join(order)}, or a module inside of one"
                    )
