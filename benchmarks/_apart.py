"""Loaders that want other versions of our libraries than we do: each runs in an interpreter of its own, `.venv/apart`.

Here are both sides. What runs there imports no more of Forgepress than this file: it writes the rows once in the
library's own form, iterates, and says every batch with one byte on its standard output.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH_SAID = b"."


def way(library: str, rows: "Rows", batch: int, workers: int) -> Callable[[], Iterator[int]]:
    """A way (see `_loaders`) through one of LIBRARIES; raises FileNotFoundError where `.venv/apart` is not set up."""

    def start() -> Iterator[int]:
        python = Path(sys.prefix) / "apart" / "bin" / "python"
        if not python.is_file():
            raise FileNotFoundError(f"{python}; `make bench` sets it up")
        given = [library, str(rows.place()), rows.kind, str(batch), str(workers)]
        with subprocess.Popen([python, "-P", __file__, *given], stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            try:
                while running.stdout.read(1) == BATCH_SAID:
                    yield batch
                raise RuntimeError(f"{library} ended with exit code {running.wait()}")
            finally:
                running.kill()

    return start


class Rows:
    """Rows of bytes, written to a folder when they are first asked for: what the other interpreter reads them from."""

    def __init__(self, folder: Path, kind: str, rows: Sequence[bytes]) -> None:
        """kind: how a row becomes a tensor, one of DECODE."""
        self._folder, self.kind, self._rows = folder / "apart", kind, rows

    def place(self) -> Path:
        """The folder with them."""
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True)
            (self._folder / "rows").write_bytes(b"".join(self._rows))
            np.save(self._folder / "ends.npy", np.cumsum([len(row) for row in self._rows]))
        return self._folder


def _read(folder: Path) -> Iterator[bytes]:
    content, begin = (folder / "rows").read_bytes(), 0
    for end in np.load(folder / "ends.npy").tolist():
        yield content[begin:end]
        begin = end


def _tokens(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.int32).copy())


def _jpeg(content: bytes) -> torch.Tensor:
    import simplejpeg

    return torch.from_numpy(simplejpeg.decode_jpeg(content, "RGB"))


DECODE = {"tokens": _tokens, "jpeg": _jpeg}


def _streaming(folder: Path, decode: Callable[[bytes], torch.Tensor], batch: int, workers: int) -> Any:
    """MosaicML streaming over its own shards."""
    _declare_torchvision()
    from streaming import MDSWriter, StreamingDataset  # pyright: ignore[reportMissingImports]

    place = folder / "mds"
    if not place.is_dir():
        with MDSWriter(out=str(place), columns={"row": "bytes"}) as writer:
            for row in _read(folder):
                writer.write({"row": row})

    class Rows(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return decode(super().__getitem__(index)["row"])

    data = Rows(local=str(place), shuffle=True, batch_size=batch)
    return torch.utils.data.DataLoader(data, batch, num_workers=workers)


def _litdata(folder: Path, decode: Callable[[bytes], torch.Tensor], batch: int, workers: int) -> Any:
    """litdata over its own chunks."""
    import litdata  # pyright: ignore[reportMissingImports]
    from litdata.streaming.writer import BinaryWriter  # pyright: ignore[reportMissingImports]

    place = folder / "litdata"
    if not place.is_dir():
        place.mkdir()
        writer = BinaryWriter(str(place), chunk_bytes="64MB")
        for number, row in enumerate(_read(folder)):
            writer[number] = {"row": row}
        writer.done()
        writer.merge()

    class Rows(litdata.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return decode(super().__getitem__(index)["row"])

    return litdata.StreamingDataLoader(Rows(str(place), shuffle=True), batch_size=batch, num_workers=workers)


LIBRARIES = {"MosaicML streaming": _streaming, "litdata": _litdata}


def _declare_torchvision() -> None:
    """A torchvision made for CUDA cannot be imported with a CPU build of torch unless these operators are there."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library._kept = library  # pyright: ignore[reportAttributeAccessIssue] (they live as long as it does)


def main() -> None:
    """Iterate without end, in the interpreter apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=list(LIBRARIES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=list(DECODE))
    parser.add_argument("batch", type=int)
    parser.add_argument("workers", type=int)
    given = parser.parse_args()
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # what a library prints is no batch
    torch.set_num_threads(1)
    loader = LIBRARIES[given.library](given.folder, DECODE[given.kind], given.batch, given.workers)
    while True:
        for _ in loader:
            out.write(BATCH_SAID)
            out.flush()


if __name__ == "__main__":
    main()
