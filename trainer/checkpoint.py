"""Sharded, asynchronous, atomic checkpoints, and the way back onto any mesh.

torch's own library for them is imported by the first save or restore: it takes a second, which the first step need
not wait for.
"""

from __future__ import annotations

import json
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..errors import CheckpointError
from ..parallel import Mesh
from . import checkpoint_files as files
from .assembly import Assembly, make_state, settle

Tensors = dict[str, Tensor]
FORMAT = 1
"""Of what a checkpoint holds; another number is another version's checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A committed, undamaged checkpoint."""

    folder: Path
    step: int
    state: dict[str, Any]
    """The JSON part: phase, plan, techniques' memories, data position, best metric, mesh it was saved on."""


class Checkpoints:
    """A run's checkpoints. Collective calls: ``save``, ``wait``, ``newest``, ``restore``."""

    def __init__(self, folder: Path, mesh: Mesh, *, keep: int, asynchronous: bool) -> None:
        """Take ``folder`` (shared by all ranks) for this run's checkpoints."""
        self.folder = folder
        self._mesh = mesh
        self._keep = keep
        # The writing thread needs a group of its own: its collectives must not meet those of training.
        self._group: Any = dist.new_group(backend="gloo") if mesh.world > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._pending: tuple[int, Future[None]] | None = None

    def save(self, step: int, assembly: Assembly, state: dict[str, Any], *, best: int | None = None) -> None:
        """Save everything at a step boundary; returns when the state is copied, writing goes on behind.

        best:   the step whose checkpoint is spared when old ones are deleted.
        raises: CheckpointError for this or (asynchronous) the previous save; earlier checkpoints stay whole.
        """
        self.wait()
        state = {**state, "format": FORMAT, "step": step, "techniques": _merged(assembly, self._mesh)}
        state = json.loads(json.dumps(state))  # a copy: training goes on changing it while the thread writes
        snapshot = _copy(tensors_of(assembly), self._mesh)
        if self._thread is None:
            self._guard(step, lambda: self._write(step, snapshot, state, best))
        else:
            self._pending = (step, self._thread.submit(self._write, step, snapshot, state, best))

    def wait(self) -> None:
        """Until the save that is under way is committed. raises: CheckpointError where it failed."""
        if self._pending is not None:
            (step, pending), self._pending = self._pending, None
            self._guard(step, pending.result)

    def close(self) -> None:
        """Wait for the last save and end the writing thread."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def _write(self, step: int, snapshot: Tensors, state: dict[str, Any], best: int | None) -> None:
        import torch.distributed.checkpoint as dcp

        temporary = self.folder / f"step-{step}{files.SAVING}"
        if self._mesh.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        if self._group is not None:
            dist.barrier(
                self._group
            )  # each rank's writer makes the folder: not while what was left is deleted
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch speaks of its own plans for this call
                dcp.save(
                    dict(snapshot),
                    storage_writer=dcp.FileSystemWriter(temporary, overwrite=True),
                    process_group=self._group,
                    no_dist=self._group is None,
                )
            if self._mesh.rank == 0:
                files.commit(temporary, self.folder / f"step-{step}", state)
                files.tidy(self.folder, step, keep=self._keep, spare=[] if best is None else [best])
        except BaseException:
            if self._mesh.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _guard(self, step: int, work: Any) -> None:
        try:
            work()
        except (OSError, RuntimeError, _torchs_own()) as error:
            whole = files.steps_in(self.folder)
            rest = (
                f"step-{whole[-1]} is whole and can be resumed from" if whole else "there is no earlier one"
            )
            raise CheckpointError(
                f"checkpoint step-{step} in {self.folder} could not be written: {_root_cause(error)}; {rest}. "
                "Free space there and start the run again: it goes on from the newest whole one"
            ) from error

    # ── and back

    def newest(self) -> tuple[Saved | None, list[str]]:
        """The newest undamaged checkpoint, and a line for every damaged one that was passed over."""
        found: list[Any] = [None, []]
        if self._mesh.rank == 0:
            found = self._search()
        if self._mesh.world > 1:
            dist.broadcast_object_list(found, src=0)
        step, notes = found
        if step is None:
            return None, notes
        return open_saved(self.folder / f"step-{step}"), notes

    def _search(self) -> list[Any]:
        notes: list[str] = []
        for step in reversed(files.steps_in(self.folder)):
            trouble = files.damage(self.folder / f"step-{step}")
            if trouble is None:
                return [step, notes]
            notes.append(f"checkpoint step-{step} is damaged ({trouble}) and is passed over")
        return [None, notes]

    def restore(self, saved: Saved, assembly: Assembly) -> None:
        """Write a checkpoint into a freshly assembled phase, whatever mesh it was saved on.

        raises: CheckpointError where model or techniques are not those of the checkpoint.
        """
        import torch.distributed.checkpoint as dcp

        from .checkpoint_reader import SafeReader

        reader = SafeReader(saved.folder)
        known = reader.read_metadata().state_dict_metadata
        moments, counts = make_state(
            assembly, [key.removeprefix("optimizer/") for key in known if key.startswith("optimizer/")]
        )
        chain = _empty_chain_state(assembly, known)
        wanted = _model_tensors(assembly)
        wanted |= {f"optimizer/{k}": w.wrap(t) for k, (w, t) in moments.items()}
        wanted |= {f"optimizer/{k}": t for k, t in counts.items()}
        wanted |= {f"chain/{k}": w.wrap(t) for k, (w, t) in chain.items()}
        missing = sorted(wanted.keys() - known.keys())
        if missing:
            raise CheckpointError(
                f"{saved.folder} holds no {missing[0]!r} ({len(missing)} missing): it belongs to another model; "
                "take another name for this run, or start it over with --fresh"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as for save: one process is what is meant
                dcp.load(
                    wanted, storage_reader=reader, no_dist=self._group is None, process_group=self._group
                )
        except _torchs_own() as error:
            raise CheckpointError(
                f"{saved.folder} does not fit this run: {_root_cause(error)}; take another name for this run, "
                "or start it over with --fresh"
            ) from error
        assembly.chain.load(saved.state["techniques"], {k: t for k, (_, t) in chain.items()})
        settle(assembly, moments, counts)


def open_saved(folder: Path) -> Saved:
    """A whole checkpoint by its folder. raises: CheckpointError where another version of Forgepress wrote it."""
    state = json.loads((folder / "state.json").read_text())
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} was written by another version of Forgepress (format {state.get('format')}, want {FORMAT}); "
            "go on with that version, take another name for this run, or start it over with --fresh"
        )
    return Saved(folder=folder, step=state["step"], state=state)


def tensors_of(assembly: Assembly) -> Tensors:
    """Everything of a phase that is tensors, placed on the mesh: model, optimizer, techniques."""
    placed = {f"optimizer/{k}": w.wrap(t) for k, (w, t) in assembly.moments().items()}
    placed |= {f"optimizer/{k}": t for k, t in assembly.counts().items()}
    placed |= {f"chain/{k}": w.wrap(t) for k, (w, t) in assembly.chain.tensors().items()}
    return {**_model_tensors(assembly), **placed}


def _model_tensors(assembly: Assembly) -> Tensors:
    held = {**assembly.engine.parameters(), **assembly.engine.buffers()}
    return {f"model/{name}": tensor.detach() for name, tensor in held.items()}


def _empty_chain_state(assembly: Assembly, known: Any) -> dict[str, Any]:
    state = {}
    for full, about in known.items():
        if full.startswith("chain/"):
            key = full.removeprefix("chain/")
            room = assembly.chain.empty(key, about.size, about.properties.dtype)
            if room is not None:
                state[key] = room
    return state


def _copy(tensors: Tensors, mesh: Mesh) -> Tensors:
    """A copy on the CPU that training cannot change any more."""
    if mesh.device.type == "cpu":
        return {key: t.clone() for key, t in tensors.items()}
    from torch.distributed._state_dict_utils import _offload_state_dict_to_cpu

    return _offload_state_dict_to_cpu(tensors)


def _merged(assembly: Assembly, mesh: Mesh) -> dict[str, Any]:
    """The techniques' JSON state with the notes of all pipeline stages."""
    state = assembly.chain.state()
    if mesh.pipeline == 1:
        return state
    everyone: list[Any] = [None] * mesh.world
    dist.all_gather_object(everyone, state["notes"])
    notes: dict[str, dict[str, Any]] = {}
    for theirs in everyone:
        for scope, by_name in theirs.items():
            notes.setdefault(scope, {}).update(by_name)
    return {**state, "notes": notes}


def _torchs_own() -> type[BaseException]:
    """What torch raises for a save or load that failed on some rank."""
    from torch.distributed.checkpoint.api import CheckpointException

    return CheckpointException


def _root_cause(error: BaseException) -> str:
    """The innermost reason in one line; DCP wraps each rank's error in its own."""
    failures = getattr(error, "failures", None) if isinstance(error, _torchs_own()) else None
    if failures:
        rank, failure = next(iter(failures.items()))
        inner = failure[0] if isinstance(failure, tuple) else failure
        return f"rank {rank}: {_first_line(inner)}"
    return _first_line(error)


def _first_line(error: object) -> str:
    text = str(error) or type(error).__name__
    if "inline_container" in text:  # how torch's writer says that fewer bytes arrived than it wrote
        return "the disk did not take all bytes (No space left on device, or a quota)"
    return text.splitlines()[0]
