"""One logged dict as the flat numbers that dashboards draw."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..jsonable import plain

PLACES = ("step", "kind", "phase")  # say where a point belongs; not curves themselves


def scalars(values: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """The step, and name → number with the kind in front: {"kind": "train", "loss": 1.5} → {"train/loss": 1.5}.

    Nested dicts become names with slashes; texts, lists and missing numbers are left out.
    """
    rest = {key: value for key, value in plain(values).items() if key not in PLACES}
    return int(values.get("step") or 0), dict(_flat(str(values.get("kind", "train")), rest))


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from _flat(name, value)
        elif isinstance(value, bool | int | float):
            yield name, float(value)
