"""The same rows through other libraries, each as its documentation has it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forgepress.benchmarks._loaders import Way, endless, lazy

Decode = Callable[[bytes], torch.Tensor]


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

    def __init__(self, folder: Path, name: str, rows: Sequence[bytes]) -> None:
        self._folder, self._name, self._rows = folder, name, rows

    def way(self, library: str, batch: int, workers: int, decode: Decode) -> Way:
        """One of LIBRARIES, shuffling; `decode` makes a tensor of a row's bytes."""
        return lazy(lambda: LIBRARIES[library](self, batch, workers, decode))

    def once(self, kind: str, write: Callable[[Path, str, Sequence[bytes]], None]) -> Path:
        """The folder with the rows in one form."""
        place = self._folder / kind
        if not place.is_dir():
            place.mkdir(parents=True)
            write(place, self._name, self._rows)
        return place


def _streaming(written: Written, batch: int, workers: int, decode: Decode) -> Way:
    """MosaicML streaming over its own shards."""
    from streaming import MDSWriter, StreamingDataset

    def write(folder: Path, name: str, rows: Sequence[bytes]) -> None:
        with MDSWriter(out=str(folder / "mds"), columns={name: "bytes"}) as writer:
            for row in rows:
                writer.write({name: row})

    class Rows(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return decode(next(iter(super().__getitem__(index).values())))

    place = str(written.once("streaming", write) / "mds")

    def make() -> Any:
        return torch.utils.data.DataLoader(
            Rows(local=place, shuffle=True, batch_size=batch), batch, num_workers=workers
        )

    return endless(make, _first_length)


def _litdata(written: Written, batch: int, workers: int, decode: Decode) -> Way:
    """litdata over its own chunks."""
    import litdata
    from litdata.streaming.writer import BinaryWriter

    def write(folder: Path, name: str, rows: Sequence[bytes]) -> None:
        writer = BinaryWriter(str(folder), chunk_bytes="64MB")
        for number, row in enumerate(rows):
            writer[number] = {name: row}
        writer.done()
        writer.merge()

    class Rows(litdata.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return decode(next(iter(super().__getitem__(index).values())))

    place = str(written.once("litdata", write))
    return endless(
        lambda: litdata.StreamingDataLoader(Rows(place, shuffle=True), batch_size=batch, num_workers=workers),
        _first_length,
    )


def _webdataset(written: Written, batch: int, workers: int, decode: Decode) -> Way:
    """webdataset over eight tar files, a thousand rows shuffled at a time."""
    import webdataset

    def write(folder: Path, name: str, rows: Sequence[bytes]) -> None:
        for shard in range(8):
            with webdataset.TarWriter(str(folder / f"{shard}.tar")) as writer:
                for number in range(shard, len(rows), 8):
                    writer.write({"__key__": f"{number:08}", f"{name}.bin": rows[number]})

    place = written.once("webdataset", write)
    files = [str(file) for file in sorted(place.glob("*.tar"))]

    def make() -> Any:
        rows = webdataset.WebDataset(files, shardshuffle=len(files)).shuffle(1000)
        rows = rows.map(lambda row: decode(next(row[key] for key in row if key.endswith(".bin"))))
        return webdataset.WebLoader(rows.batched(batch), batch_size=None, num_workers=workers)

    return endless(make, _first_length)


LIBRARIES = {"MosaicML streaming": _streaming, "litdata": _litdata, "webdataset": _webdataset}
"""Name → way over rows that `Written` writes."""


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
