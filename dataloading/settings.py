"""What a loader may be told, checked before anything is read."""

from typing import Any

from ..errors import ConfigError

_LEAST = {
    "batch": 1, "ranks": 1, "microbatches": 1, "rank": 0, "seed": 0, "prefetch": 0, "threads": 1, "budget": 1,
    "most_errors": 0,
}  # fmt: skip
_ONE_OF = {
    "tail": ("keep", "drop", "pad", "wrap"),
    "mode": ("auto", "thread", "process"),
    "on_error": ("raise", "substitute"),
}


def check(**given: Any) -> None:
    """raises: ConfigError naming the first setting of a Loader that is no such value, or does not fit another."""
    for name, least in _LEAST.items():
        value = given[name]
        if name == "threads" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"data: {name}={value!r}; want a whole number, {least} or more")
    for name, known in _ONE_OF.items():
        if given[name] not in known:
            raise ConfigError(f"data.{name}={given[name]!r}; want {', '.join(known[:-1])} or {known[-1]}")
    shuffle = given["shuffle"]
    if not isinstance(shuffle, bool) and (not isinstance(shuffle, int) or shuffle < 1):
        raise ConfigError(f"data.shuffle={shuffle!r}; want true, false, or a number of blocks, 1 or more")
    if given["rank"] >= given["ranks"]:
        raise ConfigError(
            f"data: rank={given['rank']} of ranks={given['ranks']}; want 0 to {given['ranks'] - 1}"
        )
    pieces = given["ranks"] * given["microbatches"]
    if given["batch"] < pieces:
        raise ConfigError(
            f"data.batch={given['batch']} is dealt to {given['ranks']} data ranks × {given['microbatches']} "
            f"micro-batches; want at least {pieces}, so that each has a row"
        )
