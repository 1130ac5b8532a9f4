"""Where a loader's time and bytes go, counted by all its threads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter, thread_time

STAGES = ("plan", "read", "transform", "copy")


@dataclass
class Meter:
    """Sums since the loader began: seconds of its threads by stage (`plan`, `read` with decoding, `transform`, `copy`).

    Other counts: `cpu` seconds of the threads, `batches`, `rows`, `bytes`, cache `hits` and `misses`, `substituted`.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    counts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time of the block goes to stage `name`."""
        begin, processor = perf_counter(), thread_time()
        try:
            yield
        finally:
            passed, processed = perf_counter() - begin, thread_time() - processor
            with self._lock:
                self.seconds[name] += passed
                self.counts["cpu"] = self.counts.get("cpu", 0.0) + processed

    def add(self, **counts: float) -> None:
        """Add to counts by name."""
        with self._lock:
            for name, count in counts.items():
                self.counts[name] = self.counts.get(name, 0) + count

    def values(self) -> dict[str, dict[str, float]]:
        """All sums, for another process."""
        return asdict(self)

    def take(self, values: dict[str, dict[str, float]]) -> None:
        """Be what another process' meter says."""
        self.seconds, self.counts = dict(values["seconds"]), dict(values["counts"])

    def __getstate__(self) -> dict[str, dict[str, float]]:
        return self.values()

    def __setstate__(self, state: dict[str, dict[str, float]]) -> None:
        self.seconds, self.counts = state["seconds"], state["counts"]
        self._lock = threading.Lock()
