"""The run's data: sources, loaders for this data rank, and the facts that size the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..dataloading import Augment, Cache, Loader, Source, facts, load_source
from ..parallel import Mesh
from .config import RunConfig
from .imports import load_function


@dataclass(kw_only=True)
class RunData:
    """What a run reads: the training stream, the held-out rows, and what the data says about itself."""

    source: Source
    train: Loader
    test: Loader | None
    facts: dict[str, Any]

    def close(self) -> None:
        """Stop the threads that read ahead."""
        self.train.close()
        if self.test is not None:
            self.test.close()

    @property
    def items_per_row(self) -> int | None:
        """Loss items of every row where that is a constant of the data (tokens of a text window, none is padding)."""
        return None if "attention_mask" in self.source.columns else self.facts.get("length")


def open_data(config: RunConfig, mesh: Mesh) -> RunData:
    """Open both splits and cut them for this data rank; ranks of one tensor or pipeline group read the same rows.

    raises: DataError naming the file and what is wrong with it.
    """
    train = load_source(config.data.spec(), "train")
    test = load_source(config.data.spec(), "test")
    # A pipeline's stages agree on shapes once: every micro-batch must have the same number of rows.
    pad_rows = mesh.pipeline > 1
    common: dict[str, Any] = {
        "rank": mesh.data_rank,
        "ranks": mesh.data_ranks,
        "microbatches": config.parallel.microbatches,
        "pad_rows": pad_rows,
        "device": mesh.device,
        "threads": config.data.threads,
        "mode": config.data.mode,
        "cache": Cache(**config.data.cache.model_dump()) if config.data.cache else None,
    }
    augment = config.data.augment
    loader = Loader(
        train,
        batch=config.data.batch,
        seed=config.seed,
        shuffle=config.data.shuffle,
        tail=config.data.tail,
        prefetch=config.data.prefetch,
        transform=load_function(config.data.function, "data.function") if config.data.function else None,
        on_error=config.data.on_error,
        most_errors=config.data.most_errors,
        augment=Augment(**augment.model_dump()) if augment else None,
        **common,
    )
    held_out = None
    if test is not None and len(test):
        batch = config.data.batch if pad_rows else config.evaluate.batch or config.data.batch
        held_out = Loader(test, batch=batch, seed=config.seed, shuffle=False, tail="keep", **common)
    return RunData(
        source=train,
        train=loader,
        test=held_out,
        facts={**facts(train), "rows": len(train), "fingerprint": train.fingerprint},
    )
