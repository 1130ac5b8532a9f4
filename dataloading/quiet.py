"""No progress bars of `datasets`: each of many ranks would draw its own into the log."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, `datasets` draws no progress bars; afterwards as before."""
    import datasets

    had = not datasets.are_progress_bars_disabled()
    if had:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if had:
            datasets.enable_progress_bars()
