"""`forgepress bench ARTIFACT`: the artifact against the dense model it came from, on this device."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..compression import latency
from ..errors import ConfigError
from .artifact import find_artifact, folder_bytes, load
from .artifact_files import read_manifest
from .jsonable import plain, write_json


def bench_artifact(
    path: str | Path,
    *,
    batches: Sequence[int] = (1, 32),
    device: torch.device | str = "cpu",
    rounds: int = 50,
    seconds: float = 2.0,
    trust_factory: bool = False,
    json_path: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures and prints a table, then the same as one line of JSON; returns it as `{"artifact", "bytes",
    "latency_ms"}`.

    path:      artifact or run folder. batches: rows per pass. rounds, seconds: see `latency.measure`.
    json_path: the JSON goes into this file in place of the terminal.
    raises:    CheckpointError as `load`; ConfigError where the device is not there or the model does not say what its
               inputs look like.
    """
    device = _usable(device)
    folder = find_artifact(path)
    spec = read_manifest(folder)["model"]
    compressed = load(folder, trust_factory=trust_factory)  # first: it refuses what is not trusted
    from .models import build_model

    built = build_model(spec, seed=0)
    note = latency.speed_note(built.module, compressed, device)
    models = {"dense": built.module, "compressed": compressed}
    cases = latency.measure(
        models, built.example, batches=batches, device=device, rounds=rounds, seconds=seconds
    )
    result = {
        "artifact": folder.name,
        "bytes": folder_bytes(folder),
        "latency_ms": latency.as_json(cases, device=device, note=note),
    }
    console = console or Console()
    console.print(
        latency_table(result["latency_ms"], title=f"latency of {folder.name}, {result['bytes']:,} bytes")
    )
    console.print(note, highlight=False)
    if json_path is not None:
        write_json(Path(json_path), result)
    else:
        console.print(json.dumps(plain(result)), markup=False, highlight=False, soft_wrap=True)
    return result


def latency_table(latency_ms: Mapping[str, Any], *, title: str = "latency") -> Table:
    """`latency.as_json` as a table: median and the range from p10 to p90, in milliseconds."""
    table = Table(
        title=title, caption=f"median (p10 to p90) in ms on {latency_ms['device']}", title_justify="left"
    )
    cases = latency_ms["cases"]
    models = list(dict.fromkeys(name for case in cases.values() for name in case if name != "speed_up"))
    for heading in ("", *models, "speed-up"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for name, case in cases.items():
        speed_up = f"{case['speed_up']:.2f} ×" if "speed_up" in case else "–"
        table.add_row(name, *(_timing(case.get(model)) for model in models), speed_up)
    return table


def _timing(timing: Mapping[str, float] | None) -> str:
    if timing is None:
        return "–"
    return f"{timing['median']:.3g} ({timing['p10']:.3g} to {timing['p90']:.3g})"


def _usable(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"bench: device={str(device)!r} cannot be used here ({error}); try device=cpu"
        ) from error
    return found
