"""The run's data: sources, loaders for this data rank, and the facts that size the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..dataloading import (
    After,
    Augment,
    Buckets,
    Cache,
    Loader,
    Packing,
    Source,
    facts,
    load_source,
    next_tokens,
)
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
        is_even = "attention_mask" not in self.source.columns and not getattr(self.source, "ragged", None)
        return self.facts.get("length") if is_even else None


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
    augment, buckets = config.data.augment, config.data.buckets
    loader = Loader(
        train,
        batch=config.data.batch,
        seed=config.seed,
        shuffle=config.data.shuffle,
        tail=config.data.tail,
        prefetch=config.data.prefetch,
        buckets=Buckets(**buckets.model_dump()) if buckets else None,
        pack=packing(config),
        transform=_transform(config),
        on_error=config.data.on_error,
        most_errors=config.data.most_errors,
        augment=Augment(**augment.model_dump()) if augment else None,
        **common,
    )
    held_out = None
    if test is not None and len(test):
        batch = config.data.batch if pad_rows else config.evaluate.batch or config.data.batch
        held_out = held_out_loader(config, test, batch, **common)
    return RunData(
        source=train,
        train=loader,
        test=held_out,
        facts={**facts(train), "rows": len(train), "fingerprint": train.fingerprint},
    )


def held_out_loader(config: RunConfig, source: Source, batch: int, **given: Any) -> Loader:
    """Held-out rows in their order, packed where the training rows are."""
    return Loader(
        source,
        batch=batch,
        seed=config.seed,
        shuffle=False,
        tail="keep",
        pack=packing(config),
        transform=next_tokens if config.data.pack else None,
        **given,
    )


def packing(config: RunConfig) -> Packing | None:
    """How documents are packed, if they are."""
    return Packing(**config.data.pack.model_dump()) if config.data.pack else None


def _transform(config: RunConfig) -> Any:
    """The config's own function on training batches, after the targets of packed rows."""
    name = config.data.function
    own = load_function(name, "data.function") if name else None
    if config.data.pack is None:
        return own
    return next_tokens if own is None else After(next_tokens, own)
