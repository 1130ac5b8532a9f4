"""Proofs on the user's own config: the same run on any mesh, and the same run after a kill."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..parallel import TOKEN_AXES
from ..parallel.whole import gather
from .assembly import Assembly
from .config import RunConfig
from .loop import Trainer
from .start import on_mesh
from .step import Steps
from .traces import LIMITS, SQUARES, Difference, Trace, compare, read_trace

Row = tuple[str, Difference, bool | None]
"""Mesh, its differences, whether they pass (None: no verdict, a scale for the others)."""
OnRanks = Callable[..., list[Any]]
"""Runs a function of this module on N fresh local ranks (it comes from above: `launch`)."""

_STEPS = 6  # optimizer steps of every phase: enough for masks, momentum and a schedule to show a difference
_POINTS = ("begin", "end", "stop")  # settings that say when, as a share of the phase or as a step


def parity(config: RunConfig, meshes: Sequence[Mapping[str, Any]], on_ranks: OnRanks) -> tuple[bool, str]:
    """Train a few steps of every phase on one process and on each mesh, dropout off, and compare.

    meshes: keys of `parallel` that replace the config's: degrees, and perhaps an engine with its own keys. One process
    is the native engine without levers on memory and time, so that these are proven too.
    returns: (all agree, a table of the largest differences).
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        @cache
        def reference(pieces: int) -> Trace:
            return run_trace(_short(config, _PLAIN, pieces, folder / f"reference-{pieces}"), on_ranks)

        @cache
        def rounding(pieces: int) -> Difference:
            nudged = _short(config, _PLAIN, pieces, folder / f"nudged-{pieces}")
            grown = compare(reference(pieces), run_trace(nudged, on_ranks, nudge=True))
            if not _rounds_gradients(config, reference(pieces), pieces):
                return grown
            finer = _short(config, _PLAIN, 2 * pieces, folder / f"finer-{pieces}")
            return grown.or_larger(compare(reference(pieces), run_trace(finer, on_ranks)))

        for number, degrees in enumerate(meshes):
            pieces = _microbatches(config, degrees)
            there = run_trace(_short(config, degrees, pieces, folder / f"mesh-{number}"), on_ranks)
            difference = compare(reference(pieces), there)
            # How chaotic this training is costs one more run: it is asked only where the plain limits do not do.
            holds = difference.within() or difference.within(rounding=rounding(pieces))
            rows.append((_name(degrees), difference, holds))
        chaos = (
            [rounding(p) for p in {_microbatches(config, m) for m in meshes}]
            if rounding.cache_info().currsize
            else []
        )
    rows += [("one process, rounded otherwise", scale, None) for scale in chaos]
    return all(holds is not False for *_, holds in rows), _table("parity with one process", rows)


def resume(
    config: RunConfig,
    kill_at: Sequence[int],
    then_meshes: Sequence[Mapping[str, Any]],
    on_ranks: OnRanks,
) -> tuple[bool, str]:
    """Kill a run with SIGKILL at given steps, resume it, and compare with one that nobody stopped.

    kill_at: steps of the shortened run (default: at a third and at two thirds).   then_meshes: mesh of each
    resumed session (the last one stays); on the config's own mesh the result must be the same bit for bit.
    """
    home = config.parallel.degrees
    meshes = [dict(m) for m in then_meshes] or [{}]
    total = _STEPS * len(config.phases)
    kills = sorted(kill_at) or [total // 3 + 1, 2 * total // 3 + 1]
    pieces = max(_microbatches(config, m) for m in [home, *meshes])
    with tempfile.TemporaryDirectory() as folder:
        unbroken = run_trace(_short(config, home, pieces, Path(folder) / "unbroken"), on_ranks)
        sessions = [home] + [meshes[min(i, len(meshes) - 1)] or home for i in range(len(kills))]
        broken = Path(folder) / "broken"
        for degrees, kill in zip(sessions, [*kills, 0], strict=True):
            trace = run_trace(_short(config, degrees, pieces, broken), on_ranks, kill_at=kill)
        difference = compare(unbroken, trace)
    exact = all(m == {} or {**dict.fromkeys(home, 1), **m} == home for m in meshes)
    name = f"killed at {', '.join(map(str, kills))}; went on with " + ", ".join(
        _name(m) for m in sessions[1:]
    )
    holds = difference.within(exact=exact)
    title = "resume against the unbroken run" + (" (bit for bit)" if exact else "")
    return holds, _table(title, [(name, difference, holds)])


# ── one traced run


def run_trace(config: RunConfig, on_ranks: OnRanks, *, kill_at: int = 0, nudge: bool = False) -> Trace:
    """Run ``config`` on as many ranks as its mesh needs and read what it left."""
    on_ranks(
        f"{__name__}:trace",
        config.model_dump(mode="json"),
        kill_at,
        nudge,
        ranks=config.parallel.ranks,
        timeout=config.parallel.timeout,
        may_be_killed=kill_at > 0,
    )
    return read_trace(config.run_folder)


def trace(config: dict[str, Any], kill_at: int, nudge: bool, place: Any) -> None:
    """One rank of a traced run."""
    checked = RunConfig.model_validate(config)
    with on_mesh(checked, place) as mesh:
        Traced(checked, mesh=mesh, watch=place.watch, kill_at=kill_at, nudge=nudge).fit()


class Traced(Trainer):
    """A trainer that writes down every step and, at its end, the whole model with the techniques' state."""

    def __init__(self, config: RunConfig, *, kill_at: int = 0, nudge: bool = False, **place: Any) -> None:
        """kill_at: optimizer step after which the last rank kills itself; 0: none.
        nudge: make every weight wrong by one rounding error after every step (one process only).
        """
        super().__init__(config, **place)
        self._kill_at, self._nudge = kill_at, nudge

    def _assemble(self, index: int, plan: list[dict[str, Any]]) -> Assembly:
        assembly = super()._assemble(index, plan)
        _without_dropout(assembly.engine.parts)
        if index == 0:
            self._dump("start", dict(assembly.engine.parameters()))
        return assembly

    def _then(self) -> Assembly:
        assembly = super()._then()
        _without_dropout(assembly.engine.parts)
        return assembly

    def _after_step(self, steps: Steps) -> None:
        loss = self.mesh.reduce(steps.losses, "sum", ("pipeline", *TOKEN_AXES))
        steps.losses = torch.zeros_like(steps.losses)
        if self.mesh.rank == 0:
            with (self.config.run_folder / "trace.jsonl").open("a") as file:
                file.write(json.dumps([self.step, float(loss), float(steps.norm or 0.0)]) + "\n")
        if self._nudge:
            _nudge(self.assembly, self.step)
        if steps.chain.run.step == steps.chain.run.steps:
            self._dump_state(f"end-{self.phase_index}")
        if self.step == self._kill_at and self.mesh.rank == self.mesh.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._after_step(steps)

    def _dump_state(self, name: str) -> None:
        """The whole model, its moments and the techniques' state, under a name that begins with ``end-``."""
        tensors: dict[str, Tensor] = {f"model/{n}": p for n, p in self.assembly.engine.parameters().items()}
        tensors |= {f"buffer/{n}": b for n, b in self.assembly.engine.buffers().items()}
        tensors |= {f"chain/{key}": w.wrap(t) for key, (w, t) in self.assembly.chain.tensors().items()}
        moments = self.assembly.moments().items()
        tensors |= {f"{SQUARES}{w.name}": w.wrap(t) for key, (w, t) in moments if key.endswith("/exp_avg_sq")}
        self._dump(name, tensors)

    def _dump(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        whole = gather(dict(tensors), self.mesh)
        if self.mesh.rank == 0:
            save_file(
                {k: t.contiguous() for k, t in whole.items()}, self.config.run_folder / f"{name}.safetensors"
            )

    def _deliver(self) -> dict[str, Any]:
        self.checkpoints.wait()
        return {}


def _rounds_gradients(config: RunConfig, reference: Trace, pieces: int) -> bool:
    """Whether each rank's and micro-batch's share of a gradient is rounded to half precision before they are added.

    Then every other cut of the rows moves the weights by far more than float32 rounds, and one process in twice as many
    micro-batches shows by how much; where batch normalisation looks at a micro-batch, that would be another training.
    """
    half = {config.precision, *config.parallel.precision_by_module.values()} != {"fp32"}
    averages = any(key.endswith(".running_mean") for key in reference.tensors)
    return half and not averages and config.data.batch >= 2 * pieces


def _nudge(assembly: Assembly, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in assembly.weights:
        dense = weight.dense  # what the model computes with, a technique may just have put on a grid
        error = torch.finfo(dense.dtype).eps * torch.randn(dense.shape, generator=generator)
        dense.mul_(1.0 + error.to(dense))


def _without_dropout(parts: Sequence[nn.Module]) -> None:
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


# ── the shortened config


_PLAIN: dict[str, Any] = {"engine": "native", "recompute": 0, "recompute_keep": [], "compile": False}
"""Keys of `parallel` with which one process is the reference."""


def _short(config: RunConfig, degrees: Mapping[str, Any], microbatches: int, folder: Path) -> RunConfig:
    """The config on another mesh, a few steps of every phase, in a folder of its own."""
    values = config.model_dump(mode="json")
    values["name"] = folder.name
    values["checkpoint"] |= {"folder": str(folder.parent), "every": 2, "keep": 2, "keep_best": False}
    values["parallel"] |= {
        **dict.fromkeys(config.parallel.degrees, 1),
        **degrees,
        "microbatches": microbatches,
    }
    for engine in ("deepspeed", "accelerate"):  # another engine's own keys would be refused
        if engine not in degrees and values["parallel"]["engine"] != engine:
            values["parallel"][engine] = {}
    if values["parallel"]["shard"] == 1 and values["parallel"]["engine"] == "native":
        values["parallel"]["offload"] = False
    if values["parallel"]["tensor"] == 1:
        values["parallel"] |= {"sequence_parallel": False, "loss_parallel": False}
    if not any(degrees.get(axis, 1) > 1 for axis in ("pipeline",)):
        values["parallel"]["stages"] = None
    values["tracking"] |= {"wandb": None, "tensorboard": False, "every": 1000}
    values["evaluate"] |= {"every": 0}
    values["export"] = []
    for phase in values["phases"]:
        longest = phase["steps"] if phase["steps"] is not None else _STEPS
        steps = min(longest, _STEPS)
        phase |= {
            "techniques": [_sooner(t, phase["steps"], steps) for t in phase["techniques"]],
            "steps": steps,
            "epochs": None,
        }
    return RunConfig.model_validate(values)


def _sooner(technique: dict[str, Any], steps: int | None, shortened: int) -> dict[str, Any]:
    """A technique whose points in time, given as steps of the whole phase, lie within the shortened one."""
    points = {key: value for key, value in technique.items() if key in _POINTS and type(value) is int}
    share = shortened / steps if steps else 0.0
    moved = {key: round(value * share) if steps else min(value, shortened) for key, value in points.items()}
    return technique | moved


def _microbatches(config: RunConfig, degrees: Mapping[str, Any]) -> int:
    stages = degrees.get("pipeline", 1)
    return max(config.parallel.microbatches, stages if stages > 1 else 1)


def _name(degrees: Mapping[str, Any]) -> str:
    axes = " × ".join(f"{axis}={n}" for axis, n in degrees.items() if isinstance(n, int) and n > 1)
    engine = degrees.get("engine", "")
    if "deepspeed" in degrees:
        engine = f"ZeRO-{degrees['deepspeed'].get('stage', 2)}"
    return f"{axes or 'one process'}{f', {engine}' if engine else ''}"


def _table(title: str, rows: Sequence[Row]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}: largest differences", title_justify="left")
    for column in ("mesh", *LIMITS, "verdict"):
        table.add_column(column, justify="left" if column in ("mesh", "verdict") else "right")
    for name, d, holds in rows:
        numbers = [f"{v:.1e}" if v else "0" for v in d.values.values()]
        table.add_row(name, *numbers, {True: "pass", False: "FAIL", None: "(for scale)"}[holds])
    console = Console(width=110, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    noise = sorted({name for _, difference, _ in rows for name in difference.noise})
    left_out = (
        f"\nnot among the weights, without a gradient beyond rounding: {', '.join(noise)}" if noise else ""
    )
    limits = "relative; pass up to " + ", ".join(f"{limit:g} {name}" for name, limit in LIMITS.items())
    return captured.get() + limits + left_out
