"""The teacher of a step: run once on its rows for all techniques that ask, or not at all once its answers are known."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..outputs import logits_of
from ._cache import RowCache
from ._layers import tensor_of

_MERGED_BYTES = 1 << 30  # larger caches stay in parts: nobody should wait while gigabytes are copied


@dataclass(frozen=True, kw_only=True)
class Want:
    """One column that a technique asks of a teacher."""

    column: str
    """Its name among the step's columns."""
    module: str | None
    """The teacher's module whose output it is; None: the logits."""
    at: str | None
    """The student's module where it is needed; None: where the loss is."""
    keep: Callable[[Tensor], Tensor]
    """What is kept of the output of one micro-batch: [rows, …] → [rows, …]."""
    mark: str
    """What `keep` does, in words: a cache made with other words is another one."""


class Teacher:
    """A model whose outputs become columns of the step, for `Run`'s ``teacher`` in a loop of your own::

        run = Run(weights, steps=1000, modules=dict(student.named_modules()), teacher=Teacher(module))

    module: the teacher; it is put into evaluation mode and gets no gradient.
    inputs: the step's columns → what the module is called with (a tensor, or a dict of keywords); None: the column
            ``inputs``, or else the columns that carry the names of transformers' own inputs.
    cache, rows: a folder in which the answers are kept, and the number of rows of the data; tell `see` which rows a
            step has. From the step on at which all rows are known the module is not run, and let go.

    A trainer that spreads the teacher over ranks overrides what stands below "where the teacher is", and
    `writes` and `first`.
    """

    writes = True
    """Whether this process keeps the answers that it has: one of those that have the same rows."""
    first = True
    """Whether this process does what must be done once."""

    def __init__(
        self,
        module: nn.Module | None,
        *,
        inputs: Callable[[Mapping[str, Tensor]], Any] | None = None,
        microbatches: int = 1,
        cache: str | Path | None = None,
        rows: int = 0,
    ) -> None:
        if module is not None:
            module.eval().requires_grad_(False)
        self.module = module
        self.calls = 0
        self.step: int | None = None
        self._inputs = inputs or _usual_inputs
        self._microbatches = microbatches
        self._wants: dict[str, Want] = {}
        self._seen: dict[str, list[Tensor]] = {}  # while it runs: column → what was kept of each micro-batch
        self._hooks: list[Any] = []
        self._folder = None if cache is None else Path(cache)
        self._count = rows
        self._caches: dict[str, RowCache] = {}
        self._rows: Tensor | None = None
        self._epoch = self._scanned = -1
        self._any = self._complete = False

    def __call__(self, spec: Any = None) -> Teacher:
        """The teacher that a technique's ``teacher`` means: this one, whatever it is called."""
        return self

    # ── what techniques say

    def want(
        self,
        column: str,
        *,
        keep: Callable[[Tensor], Tensor],
        mark: str,
        module: str | None = None,
        at: str | None = None,
    ) -> None:
        """Ask for a column of every step from now on, in the same order on all ranks. See `Want`.

        raises: ConfigError where the teacher has no such module.
        """
        self._wants[column] = Want(column=column, module=module, at=at, keep=keep, mark=mark)
        if self.loaded:
            self._watch(self._wants[column])

    def add(self, columns: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """The step's columns with all that was asked for, as far as it is needed here. Collective.

        The teacher runs at the first call of a step; later ones find the columns there.
        """
        if self.answered(columns, step):
            return dict(columns)
        self.step = step
        return {**columns, **self._answers(columns)}

    def see(self, rows: Tensor, epoch: int) -> None:
        """Which rows of the data (int64, on the CPU) the next step has, and of which pass over the data it is."""
        self._rows, self._epoch = rows, epoch

    def close(self) -> None:
        """Take the hooks off and close what was written."""
        while self._hooks:
            self._hooks.pop().remove()
        for cache in self._caches.values():
            cache.close()

    # ── where the teacher is: one process, unless a trainer says otherwise

    @property
    def loaded(self) -> bool:
        """Whether the model is there."""
        return self.module is not None

    def forward(self, columns: Mapping[str, Tensor]) -> Any | None:
        """The module's outputs for these rows; None where they are not. Without gradients."""
        assert self.module is not None, "a teacher that was let go is asked for rows that are not known"
        x = self._inputs(columns)
        return self.module(**x) if isinstance(x, dict) else self.module(x)

    def held(self, module: str) -> nn.Module | None:
        """The teacher's live module of that name; None where it is on another rank. raises: ConfigError: no such."""
        assert self.module is not None
        modules = dict(self.module.named_modules())
        if module not in modules:
            raise ConfigError(
                f"the teacher has no module {module!r}; it has {', '.join(filter(None, modules))}"
            )
        return modules[module]

    def whole(self, module: nn.Module, output: Tensor) -> Tensor:
        """A module's output with all its features."""
        return output

    def answered(self, columns: Mapping[str, Tensor], step: int) -> bool:
        """Whether these rows have been seen already."""
        return all(name in columns for name in self._wants)

    def carry(self, want: Want, value: Tensor | None, rows: int) -> Tensor | None:
        """`value` [rows, …] of this rank, brought to the ranks that need it; None elsewhere."""
        return value

    def needed(self, want: Want) -> bool:
        """Whether `carry` brings this column here."""
        return True

    def agree(self, flag: bool) -> bool:
        """Whether all processes say so; each waits for all."""
        return flag

    def release(self) -> None:
        """Let the model go: all that it could say is known."""
        self.module = None

    # ── a step

    def _answers(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._folder is not None and self._known():
            assert self._rows is not None
            device = next(iter(columns.values())).device
            needed = [name for name, want in self._wants.items() if self.needed(want)]
            return {name: self._caches[name].read(self._rows).to(device) for name in needed}
        found = self._run(columns)
        if self._folder is not None and self.writes:
            assert self._rows is not None
            for name, value in found.items():
                self._caches[name].write(self._rows, value)
        return found

    @torch.no_grad()
    def _run(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        self._seen = {name: [] for name in self._wants}
        rows = len(next(iter(columns.values())))
        for begin, end in _cut(rows, self._microbatches):
            outputs = self.forward({name: column[begin:end] for name, column in columns.items()})
            for want in self._wants.values():
                if want.module is None and outputs is not None:
                    self._seen[want.column].append(want.keep(logits_of(outputs)))
        seen, self._seen = self._seen, {}
        values = {name: torch.cat(parts) if parts else None for name, parts in seen.items()}
        self._refuse_other_rows(values, rows)
        here = {name: self.carry(want, values[name], rows) for name, want in self._wants.items()}
        return {name: value for name, value in here.items() if value is not None}

    def _watch(self, want: Want) -> None:
        module = None if want.module is None else self.held(want.module)

        def see(module: nn.Module, args: Any, output: Any) -> None:
            if want.column not in self._seen:
                return  # somebody else runs the module
            given = self.whole(module, tensor_of(output).detach())
            kept = want.keep(given)
            alias = kept.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
            # The module after it may change the output in place.
            self._seen[want.column].append(kept.clone() if alias else kept)

        if module is not None:
            self._hooks.append(module.register_forward_hook(see))

    def _refuse_other_rows(self, values: Mapping[str, Tensor | None], rows: int) -> None:
        for name, value in values.items():
            if value is not None and len(value) != rows:
                raise ConfigError(
                    f"teacher: what {self._wants[name].module or 'the model'} gives for {rows} rows begins with "
                    f"{len(value)}; want one entry for each row in the first dim: choose another module"
                )

    # ── the cache

    def _known(self) -> bool:
        """Whether the answers for all rows of this step, on all ranks, are in the cache. Collective."""
        assert self._folder is not None
        if self._rows is None:
            raise ConfigError(
                "teacher: a cache keeps answers by row; tell Teacher.see the step's row numbers"
            )
        if not self._caches:
            writer = f"part-{time.time_ns()}-{os.getpid()}"
            for name, want in self._wants.items():
                folder = self._folder / hashlib.sha256(f"{want.module} {want.mark}".encode()).hexdigest()[:16]
                self._caches[name] = RowCache(folder, self._count, writer=writer)
        if self._complete:
            return True
        if self._scanned != self._epoch:
            self._scanned = self._epoch
            self._look_again()
        if self._complete or not self._any:
            return self._complete
        return self.agree(all(cache.holds(self._rows) for cache in self._caches.values()))

    def _look_again(self) -> None:
        """Once an epoch: what all processes have written by now."""
        self.agree(True)  # all have written what they have
        caches = list(self._caches.values())
        for cache in caches:
            cache.scan()
        self._any = self.agree(all(cache.known for cache in caches))
        self._complete = self.agree(all(cache.complete for cache in caches))
        if not self._complete:
            return
        if self.first:
            for cache in caches:
                if cache.bytes <= _MERGED_BYTES:
                    cache.merge()
        self.agree(True)  # the one file is there
        for cache in caches:
            cache.scan()
        self.release()


def _cut(rows: int, pieces: int) -> list[tuple[int, int]]:
    """(begin, end) of `pieces` pieces of the rows; every rank has as many, some perhaps empty."""
    ends = [rows * number // pieces for number in range(pieces + 1)]
    return list(pairwise(ends))


def _usual_inputs(columns: Mapping[str, Tensor]) -> Any:
    if "inputs" in columns:
        return columns["inputs"]
    known = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_values")
    found = {name: columns[name] for name in known if name in columns}
    if not found:
        raise ConfigError(
            f"teacher: the step has no column 'inputs', only {', '.join(columns)}; give Teacher(…, inputs=…), "
            "a function of the columns"
        )
    return found
