"""What every engine offers: one model spread over ranks, its passes, and who moves its weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .mesh import Mesh
from .microbatches import InHand

Inputs = Callable[[Mapping[str, Tensor]], Any]
"""columns → what the model is called with: one tensor, or a dict of keyword arguments."""
Loss = Callable[[Any, Mapping[str, Tensor], Tensor | None], Tensor]
"""(outputs, columns, valid) → scalar, already divided by the GLOBAL count."""
MakeOptimizer = Callable[[Sequence[tuple[str, Tensor]]], torch.optim.Optimizer]
"""(name, parameter) pairs → the optimizer that is to move them."""


class Masters(Protocol):
    """Weights that an engine moves itself, with its own copy of them in full precision.

    The trainer sees each as a shard of whole rows (`Engine.parameters()`), which the engine fills and takes back:
    gradients after a backward, moved weights after a step, and what techniques have made of them.
    """

    optimizer: torch.optim.Optimizer
    """Moves the engine's copies; its groups hold the learning rate."""
    looked_at: bool
    """Whether techniques look at weights and gradients: else nobody writes into `Engine.parameters()` in a step."""

    def look(self, looked_at: bool) -> None:
        """Whether techniques look at weights and gradients from now on. Collective."""
        ...

    def gradient(self, name: str) -> Tensor | None:
        """The gradient of the last backward: shaped like the local part, or flat where no technique looks at it."""
        ...

    def whole_rows(self, name: str) -> Tensor:
        """The engine's own full-precision values behind the parameter, shaped like its local part. Collective."""
        ...

    def step(self) -> None:
        """Move the copies by the gradients, and show the moved values in `parameters()`. Collective."""
        ...

    def skip(self) -> None:
        """Forget the gradients and move nothing. Collective."""
        ...

    def take(self, changed: Sequence[str], dense: Mapping[str, Tensor]) -> None:
        """What was written into `parameters()` counts: the next forward computes with it. Collective.

        changed: names written to.   dense: name → values (shaped like the local part) that the optimizer moves on
        from, the copy; where a name is not in it, the optimizer goes on from what it had.
        """
        ...

    def states(self) -> dict[str, Tensor]:
        """Optimizer state shaped like a weight: ``name/key`` → values of the local part's shape. Collective."""
        ...

    def counts(self) -> dict[str, Tensor]:
        """Optimizer state that is one number per weight (Adam's step): ``name/key`` → 0-dim tensor."""
        ...

    def load_states(self, states: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        """Take back what `states` and `counts` gave. Collective.

        raises: ConfigError where weights that share a count come with different ones.
        """
        ...


class Engine(Protocol):
    """One model on a mesh. `NativeEngine`, `DeepSpeedEngine` and `AccelerateEngine` are engines."""

    mesh: Mesh
    microbatches: int
    parts: list[nn.Module]
    """What runs here: one module without pipeline, else one for each stage."""
    now: InHand
    """The micro-batch whose forward runs just now."""

    @property
    def masters(self) -> Masters | None:
        """Who moves the weights; None: whoever writes into `parameters()`."""
        ...

    @property
    def home_of_outputs(self) -> int:
        """The pipeline rank on which `forward` gives outputs and the loss is computed."""
        ...

    @property
    def coordinates(self) -> Mapping[str, int] | None:
        """This rank's index on each axis that parameters' DTensors name; None: that of the mesh."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter, of what is held here: plain tensors, or DTensors where they are divided."""
        ...

    def buffers(self) -> dict[str, Tensor]:
        """Name → buffer, of what is held here; whole, and equal on all data ranks."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """Name → live module, of what is held here."""
        ...

    def written(self, dense: Mapping[str, Tensor] | None = None) -> None:
        """All of `parameters()` was written to: the next forward computes with it. Collective.

        dense: name → values (shaped like the local part) that the optimizer moves on from, where they are others.
        """
        ...

    def zero_grad(self) -> None:
        """Drop all gradients."""
        ...

    def forward_backward(
        self,
        columns: Mapping[str, Tensor],
        valid: Tensor | None,
        inputs: Inputs,
        loss: Loss,
        *,
        global_rows: int | None = None,
    ) -> Tensor:
        """One step's gradients, SUMMED over micro-batches and data ranks; the sum of this rank's losses."""
        ...

    def forward(
        self, columns: Mapping[str, Tensor], inputs: Inputs, valid: Tensor | None = None
    ) -> Any | None:
        """Outputs for this data rank's rows, without gradients; None on stages other than the last."""
        ...

    def close(self) -> None:
        """Let the model and everything that holds it go; another engine may be made then."""
        ...
