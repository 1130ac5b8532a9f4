"""Gives the trainer's proofs what they need from above: a way to run a function on N fresh local ranks.

The trainer may not import this package, so the proofs receive `on_ranks` as a plain callable.
"""

from pathlib import Path
from typing import Any

import typer

from .submit import RankFailed, submit


def on_ranks(
    function: str,
    *arguments: Any,
    ranks: int,
    run_folder: Path | None = None,
    timeout: float = 60.0,
    may_be_killed: bool = False,
) -> list[Any]:
    """Runs `function` ("package.module:qualname") on `ranks` new local processes; what each returned, in rank order.

    arguments:     JSON values; the function also gets `place=Place(…)` if it takes `place`.
    may_be_killed: True returns [] when the ranks were ended by SIGKILL, which is how a proof of resume kills itself.
    raises:        RankFailed (a ForgepressError) with rank, host, step and cause.
    """
    future = submit(function, *arguments, ranks=ranks, run_folder=run_folder, timeout=timeout)
    try:
        return future.results()
    except RankFailed as failed:
        if may_be_killed and 9 in failed.outcome.signals:
            return []
        raise


def parity(config: Any, meshes: list[dict[str, Any]]) -> int:
    """Prints the trainer's parity report; 0 if every mesh agrees with one process, else 1."""
    from ..trainer import verify as proofs

    return _print(proofs.parity(config, meshes, on_ranks))


def resume(config: Any, kill_at: list[int], then_meshes: list[dict[str, Any]]) -> int:
    """Prints the trainer's resume report; 0 if the resumed run equals the one that was never stopped, else 1."""
    from ..trainer import verify as proofs

    return _print(proofs.resume(config, kill_at, then_meshes, on_ranks))


def _print(verdict: tuple[bool, str]) -> int:
    """A proof gives (holds, text)."""
    holds, text = verdict
    typer.echo(text)
    return 0 if holds else 1
