"""What a technique is: one frozen dataclass with a few optional calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from .matching import matching_parameters

if TYPE_CHECKING:
    from .run import Run

Record = dict[str, Any]
"""What one ``finalize`` did, as JSON: enough to do it again on a fresh model."""
State = Mapping[str, Mapping[str, Tensor]]
"""A technique's own buffers at the end of its phase: key → parameter name → whole tensor."""
EXAMPLE = "example"
"""The key in a `State` under which a technique that ``traces`` finds the model's inputs: "0", "1", … or by name."""
Example = tuple[Tensor, ...] | dict[str, Tensor]
"""Inputs of the model for one row, by position or by name."""
Widths = dict[str, dict[int, int]]
"""Parameter → {dim: what the number of units along it will be a multiple of}."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of "requested against achieved".

    ``at_least`` says how to compare: True wants ``achieved >= requested``, False wants them equal; both
    within ``tolerance`` (same unit).
    """

    quantity: str
    requested: float
    achieved: float
    tolerance: float = 0.0
    at_least: bool = True

    @property
    def holds(self) -> bool:
        """Whether what was asked for has happened."""
        if self.at_least:
            return self.achieved >= self.requested - self.tolerance
        return abs(self.achieved - self.requested) <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What `together.refusals` must know to tell which techniques go together."""

    writes: Literal["", "dense", "working"] = ""
    """Where ``after_step`` writes: into the weights that the optimizer moves, or by `Weight.project` before them."""
    gives: Literal["", "zeros", "grid", "shapes"] = ""
    """What it delivers and later phases must keep."""
    owns: bool = True
    """Whether it decides which zeros or values there are; a penalty only draws towards them."""


@dataclass(frozen=True, kw_only=True)
class Technique:
    """Base of every technique. Fields are settings; state lives in the `Run` and goes into the checkpoint.

    A technique is called in this order: ``prepare`` once, ``set_up`` once, then per optimizer step ``before_step``,
    ``add_columns``, ``add_loss`` (once per micro-batch, where outputs exist), ``after_backward``, ``after_step``,
    and at the end of its phase ``finalize``. It never asks which parallel strategy runs, keeps no reference to a
    Parameter (names only: wrapping and resharding replace the object) and no state of its own.
    """

    match: str | tuple[str, ...] = "weights"
    """Which parameters: ``weights`` (two or more dims), ``scales`` (the vectors of normalisation layers), or globs over
    names; a leading ``!`` excludes."""

    changes_model: ClassVar[bool] = False
    """True where ``prepare`` or ``finalize`` swap modules or change shapes: the run is then sharded anew."""
    contract: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Settings with which the contract test runs the technique on every mesh: one dict for every way that matters."""
    bytes_per_weight: ClassVar[float] = 0.0
    """Extra memory in bytes for each weight it matches, for the estimate of ``forgepress check``."""

    needs_teacher: ClassVar[bool] = False
    """True where it learns from a teacher, which its field ``teacher`` names."""
    trains: ClassVar[bool | None] = True
    """False: it only looks. A phase in which no technique trains runs forward passes and moves nothing. None: it only
    keeps what there is, and the others decide."""
    delivers: ClassVar[tuple[str, ...]] = ()
    """Keys of the `Run.buffer` state that ``finalize`` wants to see, whole."""
    traces: ClassVar[bool] = False
    """True: ``finalize`` traces the model, and finds an input of one row for that in ``state["example"]``."""

    def prepare(self, model: nn.Module) -> None:
        """Swap or add modules, on the whole model, before it is sharded. Must be repeatable from settings."""

    def set_up(self, run: Run) -> None:
        """The phase's model stands on the mesh, after a resume too: the place to hook modules (`Run.module`)."""

    def before_step(self, run: Run) -> None:
        """A step begins; weights are working weights."""

    def add_columns(self, run: Run, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's rows of the step [rows, …] with more columns, such as a teacher's outputs.

        They are cut into micro-batches like all others. Called on all ranks, so that it may communicate.
        """
        return columns

    def add_loss(self, run: Run, outputs: Any, batch: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """Return ``loss`` with a term that needs outputs; called where the outputs exist."""
        return loss

    def after_backward(self, run: Run) -> None:
        """Gradients are those of the global batch, not yet clipped."""

    def after_step(self, run: Run) -> None:
        """Weights have just moved; write working values with `Weight.project` or in place."""

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Deliver, on the whole model, once at the end of the phase; shapes may change.

        state:   the buffers named in ``delivers``, whole (empty where there are none); where the technique
                 ``traces``, also ``example``: {"0": the model's first input for one row, …}, or inputs by name.
        returns: the record that `rebuild` needs to do the same to a fresh model.
        """
        return {}

    def foretell(self, model: nn.Module, example: Example) -> Widths:
        """What ``finalize`` will do to sizes, on shapes alone (meta tensors). Called before the first step.

        returns: the dims that will be narrower, and by what they will stay divisible.
        raises:  ConfigError where ``finalize`` could not deliver, so that no run trains for nothing.
        """
        return {}

    def rebuild(self, model: nn.Module, record: Record) -> None:
        """Do to a fresh ``model`` what ``finalize`` did, from its record; weights are loaded afterwards."""

    def checks(self, run: Run) -> list[Check]:
        """Requested against achieved at this step, measured on the parameters that the model uses.

        Collective: called on all ranks at the same step. A line that does not hold stops the run.
        """
        return []

    def traits(self) -> Traits:
        """What it does to weights, for the rules about which techniques go together."""
        return Traits()

    def settings(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return dataclasses.asdict(self)

    def matched(self, model: nn.Module) -> list[str]:
        """Names of the parameters of the whole ``model`` that this technique will touch."""
        return matching_parameters(model, self.match)
