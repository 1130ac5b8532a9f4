"""The model on rows that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable

from ..parallel import TOKEN_AXES, Mesh
from .assembly import Assembly
from .data import RunData
from .metrics import Meter
from .sequences import cut_batch

_OTHER_ITEMS = ("pipeline", *TOKEN_AXES)


def evaluate(
    assembly: Assembly,
    data: RunData,
    mesh: Mesh,
    metrics: tuple[str, ...],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Loss and metrics over all held-out rows, each row once whatever the mesh. Collective; the same on all ranks.

    progress: called after each batch.
    """
    if data.test is None:
        return {}
    engine, task = assembly.engine, assembly.task
    meter = Meter(task, metrics, device=mesh.device)
    for part in engine.parts:
        part.eval()
    try:
        for whole in data.test:
            batch = cut_batch(whole, task, mesh)
            outputs = engine.forward(batch.columns, assembly.inputs)
            if outputs is not None:
                meter.update(outputs, batch.columns, batch.valid)
            progress()
    finally:
        for part in engine.parts:
            part.train()
    return meter.result(mesh.reduce(meter.sums(), "sum", _OTHER_ITEMS))
