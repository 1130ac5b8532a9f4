"""What a loader says about itself: where its time goes, and what binds."""

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from .meter import Meter

_NEVER = 0.01  # share of the time that a consumer may wait before something binds


@dataclass(frozen=True, kw_only=True)
class Report:
    """Sums since the loader began."""

    wait_seconds: float
    """That the consumer waited; reads made in the step itself count."""
    wait_share: float
    """Of the time since the first batch was asked for."""
    seconds: dict[str, float]
    """Of all threads of the loader, by stage: read (with decoding), transform, copy."""
    batches: int
    rows: int
    bytes: int
    cpu_seconds: float
    """Of the loader's threads; of a loader process its own."""
    hits: float | None
    """Share of rows that came from the cache; None without one."""
    substituted: int
    """Damaged rows that another one stands in for."""
    mode: str
    """step, thread or process."""
    depth: int
    """Reads that may lie ready at present."""
    ready: int
    """Reads that lie ready at this moment."""
    depth_changes: tuple[tuple[int, int], ...]
    """(reads delivered, new depth) of the last changes."""

    @property
    def binds(self) -> str:
        """The step (the loader is quick enough), or the loader's stage that takes longest."""
        if self.wait_share < _NEVER or not any(self.seconds.values()):
            return "step"
        return max(self.seconds, key=lambda stage: self.seconds[stage])

    def __str__(self) -> str:
        share = f"data wait {self.wait_share:.1%}, {self.binds} binds"
        stages = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in self.seconds.items() if seconds)
        hits = "" if self.hits is None else f", cache hits {self.hits:.0%}"
        damaged = f", {self.substituted} damaged rows replaced" if self.substituted else ""
        rate = f"{self.rows:,} rows, {self.bytes / 2**20:,.0f} MiB"
        return f"{share} ({self.mode}, depth {self.depth}; {rate}; {stages}{hits}{damaged})"

    def as_json(self) -> dict[str, Any]:
        """Plain values, with what binds."""
        return {**asdict(self), "binds": self.binds}


def report_of(meter: Meter, ahead: Any, *, waited: float, began: float) -> Report:
    """The report of a loader. ahead: its Ring or LoaderProcess, None where batches are made in the step."""
    count = meter.counts.get
    asked = count("hits", 0) + count("misses", 0)
    passed = perf_counter() - began if began else 0.0
    mode = "step" if ahead is None else "process" if hasattr(ahead, "pid") else "thread"
    return Report(
        wait_seconds=waited,
        wait_share=waited / passed if passed else 0.0,
        seconds={stage: seconds for stage, seconds in meter.seconds.items() if seconds},
        batches=int(count("batches", 0)),
        rows=int(count("rows", 0)),
        bytes=int(count("bytes", 0)),
        cpu_seconds=count("cpu", 0.0),
        hits=count("hits", 0) / asked if asked else None,
        substituted=int(count("substituted", 0)),
        mode=mode,
        depth=0 if ahead is None else ahead.depth,
        ready=0 if ahead is None else ahead.ready,
        depth_changes=() if ahead is None else tuple(ahead.changes),
    )
