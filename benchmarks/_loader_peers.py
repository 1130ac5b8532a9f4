"""The same rows through other libraries, each as its documentation has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forgepress.benchmarks._loaders import Way, endless


def torch_loader(data: Any, batch: int, workers: int, *, stateful: bool = False, collate: Any = None) -> Way:
    """torch's DataLoader, or torchdata's StatefulDataLoader, over anything with len and rows."""

    def make() -> Any:
        kind: Any = torch.utils.data.DataLoader
        if stateful:
            from torchdata.stateful_dataloader import StatefulDataLoader

            kind = StatefulDataLoader
        keep = {"persistent_workers": True} if workers else {}
        return kind(data, batch, shuffle=True, num_workers=workers, collate_fn=collate, **keep)

    return endless(make, _first_length)


def streaming(folder: Path, batch: int, workers: int, *, decode: Any = None) -> Way:
    """MosaicML streaming over its own shards in `folder` (`write_streaming`)."""

    def make() -> Any:
        from streaming import StreamingDataset

        class Rows(StreamingDataset):
            def __getitem__(self, index: int) -> Any:
                row = super().__getitem__(index)
                return decode(row) if decode else {"tokens": row["tokens"].copy()}

        data = Rows(local=str(folder), shuffle=True, batch_size=batch)
        return torch.utils.data.DataLoader(data, batch, num_workers=workers)

    return endless(make, _first_length)


def write_streaming(folder: Path, columns: dict[str, str], rows: Iterator[dict[str, Any]]) -> Path:
    """Rows as MDS shards, once. raises: ImportError where the library is not installed."""
    from streaming import MDSWriter

    if not (folder / "index.json").is_file():
        with MDSWriter(out=str(folder), columns=columns) as writer:
            for row in rows:
                writer.write(row)
    return folder


def litdata(folder: Path, batch: int, workers: int, *, decode: Any = None) -> Way:
    """litdata over chunks in `folder` (`write_litdata`)."""

    def make() -> Any:
        import litdata as library

        class Rows(library.StreamingDataset):
            def __getitem__(self, index: Any) -> Any:
                row = super().__getitem__(index)
                return decode(row) if decode else row

        data = Rows(str(folder), shuffle=True)
        return library.StreamingDataLoader(data, batch_size=batch, num_workers=workers)

    return endless(make, _first_length)


def grain(data: Any, batch: int, threads: int) -> Way:
    """Google's grain, reading rows in threads."""

    def make() -> Any:
        import grain as library

        rows = (
            library.MapDataset.source(data)
            .shuffle(seed=0)
            .to_iter_dataset(library.ReadOptions(num_threads=threads, prefetch_buffer_size=500))
        )
        return rows.batch(batch)

    return endless(make, _first_length)


def spdl(read: Any, count: int, batch: int, threads: int) -> Way:
    """SPDL: `read` makes a whole batch of row numbers, in threads."""

    def make() -> Any:
        from spdl.pipeline import PipelineBuilder

        def numbers() -> Iterator[np.ndarray]:
            while True:
                order = np.random.permutation(count)
                yield from (order[at : at + batch] for at in range(0, count - batch + 1, batch))

        built = PipelineBuilder().add_source(numbers()).pipe(read, concurrency=threads).add_sink(4)
        return _Running(built.build(num_threads=threads))

    return endless(make, _first_length)


class _Running:
    """A pipeline that runs while it is iterated."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __iter__(self) -> Iterator[Any]:
        with self._pipeline.auto_stop():
            yield from self._pipeline


def _first_length(batch: Any) -> int:
    if isinstance(batch, dict):
        batch = next(iter(batch.values()))
    return len(batch[0] if isinstance(batch, tuple | list) else batch)
