"""The same rows through other libraries, each as its documentation has it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forgepress.benchmarks import _apart
from forgepress.benchmarks._loaders import Way, endless, lazy


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


class Written:
    """The same rows (bytes each) as other libraries want them on disk, each form written when it is first read."""

    def __init__(self, folder: Path, kind: str, rows: Sequence[bytes]) -> None:
        """kind: how a row becomes a tensor, one of `_apart.DECODE`."""
        self._folder, self._kind, self._rows = folder, kind, rows
        self._apart = _apart.Rows(folder, kind, rows)

    def way(self, library: str, batch: int, workers: int) -> Way:
        """One of LIBRARIES, shuffling."""
        if library in _apart.LIBRARIES:
            return _apart.way(library, self._apart, batch, workers)
        return lazy(lambda: _webdataset(self._tars(), self._kind, batch, workers))

    def _tars(self) -> list[str]:
        """Eight tar files with the rows."""
        import webdataset

        place = self._folder / "webdataset"
        if not place.is_dir():
            place.mkdir(parents=True)
            for shard in range(8):
                with webdataset.TarWriter(str(place / f"{shard}.tar")) as writer:
                    for number in range(shard, len(self._rows), 8):
                        writer.write({"__key__": f"{number:08}", "row.bin": self._rows[number]})
        return [str(file) for file in sorted(place.glob("*.tar"))]


def _webdataset(files: Sequence[str], kind: str, batch: int, workers: int) -> Way:
    """webdataset over tar files, a thousand rows shuffled at a time."""
    import webdataset

    decode = _apart.DECODE[kind]

    def make() -> Any:
        rows = webdataset.WebDataset(list(files), shardshuffle=len(files)).shuffle(1000)
        rows = rows.map(lambda row: decode(row["row.bin"]))
        return webdataset.WebLoader(rows.batched(batch), batch_size=None, num_workers=workers)

    return endless(make, _first_length)


LIBRARIES = (*_apart.LIBRARIES, "webdataset")
"""Those that read rows that `Written` writes."""


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


def grain_packed(data: Any, length: int, batch: int, threads: int) -> Way:
    """grain's own packing, first fit into as many rows as a batch has."""

    def make() -> Any:
        import grain as library

        rows = (
            library.MapDataset.source(data)
            .shuffle(seed=0)
            .to_iter_dataset(library.ReadOptions(num_threads=threads, prefetch_buffer_size=500))
        )
        packed = library.experimental.FirstFitPackIterDataset(
            rows, length_struct={"tokens": length}, num_packing_bins=batch
        )
        return packed.batch(batch)

    def documents(made: Any) -> int:
        return int(made["tokens_segment_ids"].max(1).sum())

    return endless(make, documents)


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
