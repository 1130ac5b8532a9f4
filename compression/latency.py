"""How long a model takes on this device, measured: dense and compressed by turns in one run."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Example = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one forward pass over `rounds` timed passes."""

    median: float
    p10: float
    p90: float
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """Timings of all models under the same circumstances."""

    batch: int  # rows per forward pass
    threads: int | None  # CPU threads inside operators; None on an accelerator
    timings: dict[str, Timing]  # by model, in the order given

    @property
    def name(self) -> str:
        """Such as "batch 1, 1 thread"."""
        if self.threads is None:
            return f"batch {self.batch}"
        return f"batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def speed_up(self, base: str = "dense", other: str = "compressed") -> float:
        """How many times faster `other` is than `base`, by their medians."""
        return self.timings[base].median / self.timings[other].median


def measure(
    models: Mapping[str, nn.Module],
    example: Example,
    *,
    batches: Sequence[int] = (1, 32),
    device: torch.device | str = "cpu",
    threads: Sequence[int] | None = None,
    warmup: int = 5,
    rounds: int = 50,
    seconds: float = 2.0,
) -> list[Case]:
    """Forward passes of `models` without gradients, one case per batch size and number of threads.

    models:  name → module; moved to `device` and put into evaluation mode, the mode is put back.
    example: rows → positional inputs, for example `BuiltModel.example`.
    threads: CPU only; default: one thread and all that torch uses now.
    rounds:  timed passes per model and case. Models take turns in every round, in changing order, so that heat and
             other processes touch all alike. `seconds` bounds each case: rounds end early, but not before five.
    raises:  ValueError without models or with a count below one.
    """
    device = torch.device(device)
    if not models or min(*batches, rounds, 1) < 1:
        raise ValueError(
            f"latency: models={list(models)}, batches={list(batches)}, rounds={rounds}; "
            "want at least one model, and rows and rounds of at least 1"
        )
    counts: Sequence[int | None] = [None]
    if device.type == "cpu":
        counts = threads or sorted({1, torch.get_num_threads()})
    with _evaluation(models, device), torch.inference_mode():
        cases = []
        for count in counts:
            with _threads(count):
                for batch in batches:
                    inputs = tuple(tensor.to(device) for tensor in example(batch))
                    timings = _by_turns(models, inputs, device, warmup, rounds, seconds)
                    cases.append(Case(batch=batch, threads=count, timings=timings))
    return cases


def speed_note(dense: nn.Module, compressed: nn.Module, device: torch.device | str = "cpu") -> str:
    """What to expect of the compressed model's speed on `device`, from shapes, dtypes and zeros alone."""
    if _form(dense) != _form(compressed):
        return "layers have other shapes or types than before: the measured times say what that brings"
    zeros = _zero_fraction(compressed)
    if zeros > _zero_fraction(dense) + 0.01:
        return (
            f"no speed-up expected from unstructured zeros on this device ({torch.device(device).type}): {zeros:.0%} "
            "of the weights are zero, and dense kernels multiply zeros like any number; the file is what gets smaller"
        )
    return "no speed-up expected: the model computes with the same shapes and types as before"


def device_name(device: torch.device | str = "cpu") -> str:
    """The device's product name where it can be found, such as the processor's."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if device.type == "cpu" and info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or device.type


def as_json(cases: Sequence[Case], *, device: torch.device | str = "cpu", note: str = "") -> dict[str, Any]:
    """The cases as `latency_ms` of summary.json: {"device", "note", "cases": {"batch 1, 1 thread": {…}}}."""
    entries = {}
    for case in cases:
        entry: dict[str, Any] = {name: asdict(timing) for name, timing in case.timings.items()}
        if {"dense", "compressed"} <= case.timings.keys():
            entry["speed_up"] = case.speed_up()
        entries[case.name] = entry
    return {"device": device_name(device), "note": note, "cases": entries}


def _by_turns(
    models: Mapping[str, nn.Module],
    inputs: tuple[Tensor, ...],
    device: torch.device,
    warmup: int,
    rounds: int,
    seconds: float,
) -> dict[str, Timing]:
    order = list(models)
    times: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(warmup):
        for name in order:
            models[name](*inputs)
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= 5 and time.perf_counter() > end:
            break
        for name in (
            order if turn % 2 == 0 else reversed(order)
        ):  # who goes first finds the cache of the other
            times[name].append(_once(models[name], inputs, device))
    return {name: _timing(values) for name, values in times.items()}


def _once(model: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> float:
    """Milliseconds of one pass, the device's queue empty before and after."""
    _wait(device)
    start = time.perf_counter()
    model(*inputs)
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _timing(values: list[float]) -> Timing:
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Timing(median=median, p10=p10, p90=p90, rounds=len(values))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _evaluation(models: Mapping[str, nn.Module], device: torch.device) -> Iterator[None]:
    modes = {module: module.training for model in models.values() for module in model.modules()}
    for model in models.values():
        model.to(device).eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _form(model: nn.Module) -> list[tuple[Any, ...]]:
    """Shapes, dtypes and kinds of all tensors: equal forms run the same kernels on the same sizes."""
    return [
        (name, tuple(tensor.shape), tensor.dtype, tensor.layout, type(tensor.data).__name__)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    ]


def _zero_fraction(model: nn.Module) -> float:
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0
