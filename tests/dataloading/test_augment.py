"""Pictures are moved and mirrored alike on every mesh, in every session, and differently in every epoch."""

import numpy as np
import pytest
import torch
from forgepress.dataloading import ArraySource, Augment, Loader
from forgepress.errors import ConfigError, DataError

ROWS, SEED = 17, 5
AUGMENT = Augment(crop=2, flip=True)


def source() -> ArraySource:
    """Pictures of 2 × 4 × 5 pixels, no two pixels alike, none 0."""
    pixels = torch.arange(1, ROWS * 40 + 1, dtype=torch.float32)
    return ArraySource({"inputs": pixels.reshape(ROWS, 2, 4, 5), "targets": torch.arange(ROWS)})


def epoch_of(loader: Loader) -> dict[int, torch.Tensor]:
    """Target → picture of the rest of an epoch."""
    return {
        int(target): picture
        for batch in loader
        for target, picture in zip(batch.columns["targets"], batch.columns["inputs"], strict=True)
    }


def equal(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[row], other[row]) for row in one)


def test_a_picture_is_a_window_of_the_padded_one_mirrored_or_not():
    pictures = source().tensors["inputs"]
    padded = torch.nn.functional.pad(pictures, (2, 2, 2, 2))
    seen = set()
    for epoch in range(40):
        made = AUGMENT(pictures, np.arange(ROWS), seed=SEED, epoch=epoch)
        for row in range(ROWS):
            fits = [
                (down, right, mirrored)
                for down in range(5)
                for right in range(5)
                for mirrored in (False, True)
                if torch.equal(
                    padded[row, :, down : down + 4, right : right + 5].flip(2)
                    if mirrored
                    else padded[row, :, down : down + 4, right : right + 5],
                    made[row],
                )
            ]
            assert len(fits) == 1, "want exactly one window that it can be"
            seen.add(fits[0])
    assert len(seen) == 50, "every window, both ways round, comes up within 680 draws"


def test_ranks_microbatches_and_batch_size_change_no_picture():
    alone = epoch_of(Loader(source(), batch=6, seed=SEED, augment=AUGMENT))
    together: dict[int, torch.Tensor] = {}
    for rank in range(3):
        loader = Loader(
            source(), batch=7, seed=SEED, rank=rank, ranks=3, microbatches=2, augment=AUGMENT, tail="keep"
        )
        together |= epoch_of(loader)
    assert equal(alone, together)


def test_epochs_differ_and_a_resumed_loader_gives_the_same_pictures():
    loader = Loader(source(), batch=6, seed=SEED, augment=AUGMENT)
    first = epoch_of(loader)
    stream = loader.stream()
    begun = next(stream)
    state = loader.state_dict()
    second = epoch_of(loader)
    resumed = Loader(source(), batch=6, seed=SEED, augment=AUGMENT, prefetch=0)
    resumed.load_state_dict(state)
    assert equal(second, epoch_of(resumed))
    both = [row for row in second if row not in begun.columns["targets"].tolist()]
    assert any(not torch.equal(first[row], second[row]) for row in both)


def test_nothing_asked_for_changes_nothing_and_bytes_stay_bytes():
    pictures = source().tensors["inputs"].to(torch.uint8)
    made = Augment()(pictures, np.arange(ROWS), seed=SEED, epoch=1)
    assert torch.equal(made, pictures) and made.dtype == torch.uint8


def test_wrong_words_and_rows_that_are_no_pictures_are_errors():
    with pytest.raises(ConfigError, match="unknown zoom; known: crop, flip"):
        Augment.from_words({"zoom": 2})
    with pytest.raises(ConfigError, match="crop=-1"):
        Augment(crop=-1)
    flat = ArraySource({"inputs": torch.zeros(3, 4), "targets": torch.zeros(3)})
    with pytest.raises(DataError, match="want pictures"):
        next(iter(Loader(flat, batch=2, augment=AUGMENT)))
    unnamed = ArraySource({"pixels": torch.zeros(3, 1, 2, 2)})
    with pytest.raises(DataError, match="the data have pixels"):
        next(iter(Loader(unnamed, batch=2, augment=AUGMENT)))


def test_a_random_part_is_scaled_to_the_pictures_size_alike_on_every_mesh():
    part = Augment(area=(0.2, 0.9), flip=True)
    ramp = torch.linspace(0, 1, 16)[None, None, None, :].expand(64, 1, 16, 16).contiguous()
    made = Augment(area=(0.25, 0.25), ratio=(1, 1))(ramp, np.arange(64), seed=1, epoch=0)
    steps = made[:, 0, 0, 1:] - made[:, 0, 0, :-1]
    assert made.shape == ramp.shape and made.min() >= 0 and made.max() <= 1
    assert torch.allclose(steps[:, 2:-2], torch.full((), 0.5 / 15), atol=2e-3)  # half as wide: half as steep
    whole = Augment(area=(1, 1), ratio=(1, 1))(ramp, np.arange(64), seed=1, epoch=0)
    assert torch.allclose(whole, ramp, atol=1e-5)
    assert part(ramp.mul(255).to(torch.uint8), np.arange(64), seed=1, epoch=0).dtype == torch.uint8
    alone = epoch_of(Loader(source(), batch=6, seed=SEED, augment=part))
    together: dict[int, torch.Tensor] = {}
    for rank in range(3):
        together |= epoch_of(Loader(source(), batch=11, rank=rank, ranks=3, seed=SEED, augment=part))
    assert equal(alone, together)
    for wrong in ({"area": (0, 1)}, {"area": (0.5, 2)}, {"ratio": (2, 1)}, {"area": 0.5}):
        with pytest.raises(ConfigError, match=r"data\.augment\.(area|ratio)"):
            Augment(**wrong)
