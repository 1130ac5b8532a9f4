"""`forgepress bench data CONFIG`: the loader alone, on this machine, against the step that it has to feed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

from ..dataloading import Batch
from ..parallel import Mesh
from .config import RunConfig
from .data import RunData, open_data
from .jsonable import plain, write_json
from .models import build_model
from .tasks import task_for

_SETTLE = 4  # batches before the clock starts: threads and caches begin
_ENOUGH = 0.9  # share of the step's time that a batch may take before it is said to be too slow


def bench_data(
    config: RunConfig,
    *,
    seconds: float = 3.0,
    steps: int = 8,
    json_path: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures and prints how fast batches come and what binds, then the same as one line of JSON; returns it.

    seconds: of measuring the loader.   steps: forward and backward passes of the model in this process beside it; a run
    on more ranks, with techniques and an optimizer has other steps.
    returns: {"samples_per_second", "batch_ms", "first_batch_ms", "step_ms", "feeds", "report"}.
    raises:  as the run would: ConfigError, DataError.
    """
    begin = perf_counter()
    data = open_data(config, Mesh())
    try:
        stream = data.train.stream()
        next(stream)
        first = perf_counter() - begin
        batch_ms, rows = _rate(stream, seconds)
        report = data.train.report()
        step_ms = _step(config, data, stream, steps)
    finally:
        data.close()
    result = {
        "samples_per_second": rows / (batch_ms / 1e3),
        "batch_ms": batch_ms,
        "first_batch_ms": first * 1e3,
        "step_ms": step_ms,
        "feeds": batch_ms <= _ENOUGH * step_ms,
        "report": report.as_json(),
    }
    _say(result, rows, str(report), console or Console())
    if json_path is not None:
        write_json(Path(json_path), result)
    else:
        (console or Console()).print(json.dumps(plain(result)), markup=False, highlight=False, soft_wrap=True)
    return result


def _rate(stream: Iterator[Batch], seconds: float) -> tuple[float, float]:
    """Milliseconds a batch without a step between, and rows in a batch."""
    for _ in range(_SETTLE):
        next(stream)
    count = rows = 0
    begin = perf_counter()
    while (passed := perf_counter() - begin) < seconds or not count:
        rows += next(stream).global_rows
        count += 1
    return passed / count * 1e3 if passed else 0.0, rows / count


def _step(config: RunConfig, data: RunData, stream: Iterator[Batch], steps: int) -> float:
    """Milliseconds of forward and backward on the batches of one step, the quickest of `steps`."""
    built = build_model(config.model, seed=config.seed, data=data.facts)
    task, model = task_for(built.task), built.module.train()
    times = []
    for _ in range(max(steps, 1)):
        batch = next(stream)
        begin = perf_counter()
        inputs = task.inputs(batch.columns)
        outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        task.loss_sum(outputs, batch.columns, batch.valid).backward()
        times.append((perf_counter() - begin) * 1e3)
        model.zero_grad(set_to_none=True)
    return min(times)


def _say(result: dict[str, Any], rows: float, report: str, console: Console) -> None:
    threads = torch.get_num_threads()
    console.print(
        f"loader alone: {result['samples_per_second']:,.0f} samples/s, {result['batch_ms']:.3g} ms a batch of "
        f"{rows:,.0f}; the first after {result['first_batch_ms']:,.0f} ms",
        highlight=False,
    )
    console.print(report, markup=False, highlight=False)
    verdict = "feeds" if result["feeds"] else "cannot feed"
    console.print(
        f"it {verdict} a step of {result['step_ms']:.3g} ms (forward and backward here, {threads} threads)",
        highlight=False,
    )
