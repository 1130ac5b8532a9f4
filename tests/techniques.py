"""Techniques and models of the tests' own, named in configs as ``forgepress.tests.techniques:Name``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..compression import Check, Record, Run, State, Technique, local_of
from ..compression.pruning._mask import hold, mask_of, sparsity_check
from ..compression.pruning.magnitude import Magnitude
from ..compression.quantile import exact_quantile
from ..parallel import Layout
from ..trainer.models.gpt import Block


@dataclass(frozen=True, kw_only=True)
class RemoveNeurons(Technique):
    """Remove the hidden neurons of smallest norm between two linear layers, at the end of the phase."""

    before: str = "fc1"
    after: str = "fc2"
    keep: int = 6

    changes_model: ClassVar[bool] = True

    def finalize(self, model: nn.Module, state: State) -> Record:
        norms = linear(model, self.before).weight.detach().norm(dim=1)
        kept = norms.topk(self.keep).indices.sort().values.tolist()
        self._cut(model, kept)
        names = {f"{self.before}.weight": "0", f"{self.before}.bias": "0", f"{self.after}.weight": "1"}
        return {"kept": {name: {dim: kept} for name, dim in names.items()}}

    def rebuild(self, model: nn.Module, record: Record) -> None:
        self._cut(model, record["kept"][f"{self.before}.weight"]["0"])

    def _cut(self, model: nn.Module, kept: list[int]) -> None:
        first, second = linear(model, self.before), linear(model, self.after)
        assert first.bias is not None
        first.weight = _part(first.weight, 0, kept)
        first.bias = _part(first.bias, 0, kept)
        second.weight = _part(second.weight, 1, kept)
        first.out_features = second.in_features = len(kept)


def linear(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of that name."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def _part(parameter: nn.Parameter, dim: int, kept: list[int]) -> nn.Parameter:
    index = torch.tensor(kept, device=parameter.device)
    return nn.Parameter(parameter.detach().index_select(dim, index), parameter.requires_grad)


@dataclass(frozen=True, kw_only=True)
class LearnedSlope(Technique):
    """Swap an activation for one with a learned negative slope, and at the end for one with that slope fixed."""

    activation: str = "relu2"

    changes_model: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> None:
        model.set_submodule(self.activation, nn.PReLU(init=0.1))

    def finalize(self, model: nn.Module, state: State) -> Record:
        learned = model.get_submodule(self.activation)
        assert isinstance(learned, nn.PReLU)
        model.set_submodule(self.activation, FixedSlope(learned.weight.detach()))
        return {}

    def rebuild(self, model: nn.Module, record: Record) -> None:
        model.set_submodule(self.activation, FixedSlope(torch.zeros(1)))

    def matched(self, model: nn.Module) -> list[str]:
        return [f"{self.activation}.weight"]


class FixedSlope(nn.Module):
    """A leaky ReLU; its slope is a buffer, and so is a number that no file holds."""

    slope: Tensor
    offset: Tensor

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope.clone())
        self.register_buffer("offset", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x * self.slope) + self.offset


@dataclass(frozen=True, kw_only=True)
class ReshapeWithoutRecord(Technique):
    """Halve a layer's outputs and the next one's inputs without saying which were kept."""

    changes_model: ClassVar[bool] = True

    def finalize(self, model: nn.Module, state: State) -> Record:
        self.rebuild(model, {})
        return {}

    def rebuild(self, model: nn.Module, record: Record) -> None:
        RemoveNeurons()._cut(model, list(range(0, linear(model, "fc1").out_features, 2)))


# ── broken on purpose


@dataclass(frozen=True, kw_only=True)
class LocalQuantile(Magnitude):
    """Takes the threshold of the weights held here, not of all: another one on every mesh."""

    def after_step(self, run: Run) -> None:
        for weight in run.weights(self.match):
            k = round(0.5 * weight.local.numel())
            if k:
                mask_of(run, weight).copy_(weight.local.abs() > exact_quantile([weight.local], k))
            hold(weight, mask_of(run, weight))


@dataclass(frozen=True, kw_only=True)
class Forgetful(Technique):
    """Pulls the harder the longer it runs, and keeps count in Python, where no checkpoint sees it."""

    calls: ClassVar[list[int]] = []

    def before_step(self, run: Run) -> None:
        if run.step == 1:
            self.calls.clear()
        self.calls.append(run.step)

    def after_step(self, run: Run) -> None:
        for weight in run.weights(self.match):
            weight.local.mul_(1.0 - 0.01 * len(self.calls))


@dataclass(frozen=True, kw_only=True)
class StaleCopy(Technique):
    """Writes its zeros into a copy of the weights, which no forward pass ever sees."""

    sparsity: float = 0.5

    def after_step(self, run: Run) -> None:
        for weight in run.weights(self.match):
            weight.local.clone().zero_()

    def checks(self, run: Run) -> list[Check]:
        return [sparsity_check(run, run.weights(self.match), self.sparsity)]


# ── models


def frozen_and_normalised(hidden: int) -> nn.Module:
    """64 → hidden → 12 → 10 with a frozen first layer and batch normalisation; its order and tensor plan are known."""
    layers: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "stem": nn.Linear(64, 20),
        "norm": nn.BatchNorm1d(20),
        "fc1": nn.Linear(20, hidden),
        "relu1": nn.ReLU(),
        "fc2": nn.Linear(hidden, 12),
        "relu2": nn.ReLU(),
        "fc3": nn.Linear(12, 10),
    }
    layers["stem"].requires_grad_(False)
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    module.layout = Layout(order=tuple(layers), tensor_plan={"fc1": "column", "fc2": "row"})  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return module


# ── that use every call


@dataclass(frozen=True, kw_only=True)
class InnerLoss(Technique):
    """A mean square of an inner layer's outputs joins the loss, and rows of a weight get a saved number each."""

    module: str = "fc2"  # row-divided under tensor parallelism: its output is whole on every rank
    strength: float = 0.5

    delivers: ClassVar[tuple[str, ...]] = ("row_sums",)

    def set_up(self, run: Run) -> None:
        run.hook(self.module, lambda module, args, output: self._attached(run, output))

    def add_columns(self, run: Run, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = next(iter(columns.values())).shape[0]
        return columns | {"importance": torch.ones(rows)}

    def after_step(self, run: Run) -> None:
        for weight in run.weights(f"{self.module}.weight"):
            sums = run.buffer(weight, "row_sums", fill=0.0, dtype=torch.float32, sizes={1: 1})
            sums += weight.sum(weight.local.abs(), (1,))

    def finalize(self, model: nn.Module, state: State) -> Record:
        return {"row_sums": {name: t.flatten().tolist() for name, t in state["row_sums"].items()}}

    def _attached(self, run: Run, output: Tensor) -> Tensor:
        weights = run.now.columns["importance"]
        if run.now.valid is not None:
            weights = weights * run.now.valid
        term = self.strength * (output.square().flatten(1).mean(1) * weights).sum() / run.rows
        return run.attach(output, term, name="inner_loss")


@dataclass(frozen=True, kw_only=True)
class Watcher(Technique):
    """Only looks: keeps the largest activation that any rank has seen."""

    module: str = "fc1"

    trains: ClassVar[bool] = False
    changes_model: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> None:
        model.get_submodule(self.module).register_buffer("largest", torch.zeros(()))

    def set_up(self, run: Run) -> None:
        def look(module: nn.Module, args: object, output: Tensor) -> None:
            largest = local_of(module.largest)  # pyright: ignore[reportArgumentType]
            largest.copy_(torch.maximum(largest, output.detach().amax()))

        run.hook(self.module, look)

    def after_step(self, run: Run) -> None:
        module = run.module(self.module)
        if module is not None:
            largest = local_of(module.largest)  # pyright: ignore[reportArgumentType]
            largest.copy_(run.over_rows(largest, "max"))

    def finalize(self, model: nn.Module, state: State) -> Record:
        return {"largest": float(model.get_submodule(self.module).largest)}  # pyright: ignore

    def rebuild(self, model: nn.Module, record: Record) -> None:
        """The buffer is there since ``prepare``."""


class _Tokens(nn.Module):
    """[B, …] → [B, 8, 8]: the lines of a picture as tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 8, 8)


class _Pool(nn.Module):
    """[B, T, W] → [B, W]: the mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def attentive(width: int, heads: int) -> nn.Module:
    """A transformer block over the lines of an 8 × 8 picture; its MLP can be divided, its attention is left whole."""
    layers: dict[str, nn.Module] = {
        "tokens": _Tokens(),
        "embed": nn.Linear(8, width),
        "block": Block(width, heads, 2, 0.0),
        "pool": _Pool(),
        "head": nn.Linear(width, 10),
    }
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    plan = {"block.mlp.up": "column", "block.mlp.down": "row"}
    module.layout = Layout(order=tuple(layers), tensor_plan=plan)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return module
