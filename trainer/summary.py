"""summary.json: what was asked for and what came out, in the words that scripts rely on."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError
from .jsonable import plain, write_json
from .summary_table import print_summary

__all__ = [
    "ArtifactResult",
    "LayerResult",
    "Params",
    "PhaseResult",
    "Summary",
    "TechniqueResult",
    "print_summary",
    "read_summary",
    "write_summary",
]

Numbers = Mapping[str, Any]
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the final model; one counts as nonzero when its value is not 0."""

    total: int
    nonzero: int


@dataclass(frozen=True, kw_only=True)
class TechniqueResult:
    """What one technique was asked for and what it reached, by quantity ("sparsity": 0.95)."""

    name: str
    requested: Numbers
    achieved: Numbers
    holds: bool | None = None  # whether achieved is what was requested; None: judged by the numbers


@dataclass(frozen=True, kw_only=True)
class ArtifactResult:
    """One exported folder. `metrics` are those of the reloaded artifact; sizes are bytes on disk."""

    format: str
    path: str  # relative to the run folder
    bytes: int
    dense_bytes: int
    ratio: float | None = None  # how many times smaller than dense; default: from the bytes
    metrics: Numbers = field(default_factory=dict)
    latency_ms: Numbers = field(default_factory=dict)  # of latency.as_json; empty where not measured
    arithmetic: Numbers = field(default_factory=dict)  # integer formats: how many layers run how
    agreement: Numbers = field(
        default_factory=dict
    )  # integer formats: how near to the training graph, and how near wanted


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """One finished phase: its last step, counted over the run, and the evaluation there."""

    phase: str
    step: int
    metrics: Numbers = field(default_factory=dict)
    techniques: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """One weight of the final model."""

    name: str
    shape: Sequence[int]
    sparsity: float  # share of weights that are exactly 0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One run as a result. The fields down to `artifacts` are always in summary.json."""

    steps: int
    wall_seconds: float
    samples_per_second: float
    data_wait_fraction: float
    mesh: Mapping[str, int]
    final_loss: float | None
    metrics: Numbers
    params: Params
    techniques: Sequence[TechniqueResult]
    artifacts: Sequence[ArtifactResult]
    phases: Sequence[PhaseResult] = ()
    layers: Sequence[LayerResult] = ()
    trackers: Numbers = field(default_factory=dict)  # Trackers.state

    @classmethod
    def of(cls, values: "Summary | Mapping[str, Any]") -> "Summary":
        """A summary from nested plain dicts. raises: ValueError naming keys that are missing or unknown."""
        if isinstance(values, Summary):
            return values
        parts = {
            "techniques": TechniqueResult,
            "artifacts": ArtifactResult,
            "phases": PhaseResult,
            "layers": LayerResult,
        }
        given = dict(values)
        for name, kind in parts.items():
            given[name] = tuple(_made(kind, entry) for entry in given.get(name, ()))
        if "params" in given:
            given["params"] = _made(Params, given["params"])
        return _made(cls, given)

    def as_json(self) -> dict[str, Any]:
        """The content of summary.json; `dense` is the phase that everything is compared with."""
        values = plain(self)
        for artifact in values["artifacts"]:
            artifact["ratio"] = artifact["ratio"] or artifact["dense_bytes"] / max(artifact["bytes"], 1)
            for key in ("arithmetic", "agreement"):  # of integer formats only
                if not artifact[key]:
                    del artifact[key]
        values["dense"] = plain(dense_phase(self.phases))
        optional = ("dense", "phases", "layers", "trackers")
        return {key: value for key, value in values.items() if key not in optional or value}


def dense_phase(phases: Sequence[PhaseResult]) -> PhaseResult | None:
    """The last phase before the first technique; None where the first phase already has one."""
    found = None
    for phase in phases:
        if phase.techniques:
            break
        found = phase
    return found


def write_summary(run_folder: str | Path, summary: Summary | Mapping[str, Any]) -> Path:
    """Writes summary.json in one move and gives its path.

    Phases that do not say their techniques get those of the run folder's config.yaml.
    raises: ValueError naming keys that are missing or unknown.
    """
    folder = Path(run_folder)
    summary = Summary.of(summary)
    names = techniques_of_phases(read_config(folder))
    phases = tuple(
        phase if phase.techniques else dataclasses.replace(phase, techniques=names.get(phase.phase, ()))
        for phase in summary.phases
    )
    write_json(folder / "summary.json", dataclasses.replace(summary, phases=phases).as_json())
    return folder / "summary.json"


def read_summary(run_folder: str | Path) -> dict[str, Any]:
    """summary.json as a dict. raises: CheckpointError where there is none or it is damaged."""
    path = Path(run_folder) / "summary.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); it is written when a run ends: finish or resume the run"
        ) from error


def read_config(run_folder: Path) -> dict[str, Any]:
    """The run folder's resolved config as plain values; {} where there is none."""
    import yaml

    path = run_folder / "config.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return values if isinstance(values, dict) else {}


def techniques_of_phases(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Phase → names of its techniques, from a resolved config."""
    return {
        phase.get("name", ""): tuple(entry["name"] for entry in phase.get("techniques") or ())
        for phase in config.get("phases") or ()
    }


def _made(kind: type[Made], values: Any) -> Made:
    if isinstance(values, kind):
        return values
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    required = {
        name
        for name, entry in fields.items()
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    }
    missing, unknown = sorted(required - values.keys()), sorted(values.keys() - fields.keys())
    if missing or unknown:
        raise ValueError(f"summary: {kind.__name__} lacks {missing} and does not know {unknown}")
    return kind(**values)
