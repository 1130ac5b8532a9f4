"""The model on rows that it does not learn from."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..parallel import TOKEN_AXES, Mesh
from .assembly import Assembly
from .data import RunData
from .metrics import Meter
from .sequences import cut_batch

_SLOWER = 10  # times as long as the first batch may take each other one
_OTHER_ITEMS = ("pipeline", *TOKEN_AXES)


def evaluate(
    assembly: Assembly,
    data: RunData,
    mesh: Mesh,
    metrics: tuple[str, ...],
    beat: Callable[[float], object] = lambda patience: None,
) -> dict[str, float]:
    """Loss and metrics over all held-out rows, each row once whatever the mesh. Collective; the same on all ranks.

    beat: called after each batch with the seconds that the next one may take before it counts as a hang, as far as
        this is more than the usual.
    """
    if data.test is None:
        return {}
    engine, task = assembly.engine, assembly.task
    meter = Meter(task, metrics, device=mesh.device)
    began, patience = time.perf_counter(), 0.0
    for part in engine.parts:
        part.eval()
    try:
        for whole in data.test:
            batch = cut_batch(whole, task, mesh)
            outputs = engine.forward(batch.columns, assembly.inputs)
            if outputs is not None:
                meter.update(outputs, batch.columns, batch.valid)
            patience = patience or _SLOWER * (time.perf_counter() - began)
            beat(patience)
    finally:
        for part in engine.parts:
            part.train()
    return meter.result(mesh.reduce(meter.sums(), "sum", _OTHER_ITEMS))
