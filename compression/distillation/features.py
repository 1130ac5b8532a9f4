"""Distillation of hidden states: inner activations of the student come near to those of the teacher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ...errors import ConfigError
from ..run import Run
from ..technique import Record, State
from ._base import Distillation
from ._layers import (
    Shapes,
    check_pairs,
    mean_over_places,
    places,
    refuse_part,
    tensor_of,
    width,
    width_last,
    with_term,
)
from ._losses import cosine_distance, squared_distance
from ._projection import PROJECTION, project, unproject


@dataclass(frozen=True, kw_only=True)
class FeatureDistillation(Distillation):
    """Add ``weight`` times the distance of hidden states, for each student module that names a teacher module.

    A hidden state is the output of any module, [rows, W], [rows, tokens, W] or [rows, channels, height, width]. The
    distance is taken at each place (token, pixel), averaged over the real places of a row and over the rows of the
    whole global batch; pairs are added. Where widths differ, the student's is multiplied by a learned matrix of the
    student's module, which is trained with the model and gone when the phase ends.

    Each loss joins where its module is, so in a pipeline it reaches the student on any stage. Modules of a pipelined
    model must be members of the model's order or inside of them. A module whose output the tensor axis divides is
    refused: name the one that makes it whole.

    source: Romero et al. 2015, arXiv:1412.6550; Sun et al. 2019, arXiv:1908.09355; Jiao et al. 2020, arXiv:1909.10351.
    cost: the teacher's forward pass and its weights (sharded as the student's are); a few passes over each pair of
        hidden states, one multiplication where widths differ; in a pipeline the teacher's hidden state is sent to the
        student's stage where they are not the same.
    finalize: removes the learned matrices; delivers the student with the modules and shapes that it had.
    """

    layers: dict[str, str]
    """Student module → teacher module, by their names in the two models."""
    distance: Literal["mse", "cosine"] = "mse"
    """mse: mean over the width of squared differences. cosine: one minus the cosine, which leaves lengths alone."""
    weight: float = 1.0
    """Factor on the sum over all pairs."""
    projection: Literal["needed", "always"] = "needed"
    """Learn a matrix where widths differ, or for every pair."""
    widths: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Student module → widths of the student's and the teacher's output; found by one forward pass on shapes alone
    if not said."""

    changes_model: ClassVar[bool] = True
    contract: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "teacher": {"name": "lenet_300_100", "hidden": [24, 16], "seed": 8},
            "layers": {"relu2": "relu2", "fc3": "fc3"},
        },
    )

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        super().__post_init__()
        check_pairs(self.layers, self.weight)

    def modules(self) -> dict[str, str]:
        """Student module → teacher module, by their names."""
        return dict(self.layers)

    def fitted(self, student: Shapes, teacher: Shapes) -> FeatureDistillation:
        """This technique with the widths that the two models have.

        student, teacher: module → shape of its output, the rows first.
        raises: ConfigError for modules whose outputs cannot be compared.
        """
        widths = {}
        for ours, theirs in self.layers.items():
            mine, other = student[ours], teacher[theirs]
            if len(mine) != len(other) or places(mine) != places(other):
                raise ConfigError(
                    f"distillation.features.layers: {ours} gives {list(mine)} and the teacher's {theirs} "
                    f"{list(other)}; only their widths may differ: map modules that see the same places"
                )
            widths[ours] = (width(mine), width(other))
        return dataclasses.replace(self, widths={**widths, **self.widths})

    def learned(self) -> list[str]:
        """Modules whose widths differ, or all."""
        always = self.projection == "always"
        return [name for name, (ours, theirs) in self.widths.items() if ours != theirs or always]

    def prepare(self, model: nn.Module) -> None:
        """Give each module that needs it a matrix to learn; names of other parameters stay."""
        for name in self.learned():
            project(model, name, *self.widths[name])

    def set_up(self, run: Run) -> None:
        """Ask for the teacher's hidden states, and look at the student's."""
        self._ask(run, list(self.layers.items()), _hidden, "hidden")
        for name in self.layers:
            compare = partial(self._compare, run, f"{run.scope}/{name}", name)
            module = run.module(name)
            if module is not None and hasattr(module, PROJECTION):
                # Inside the module's own forward, where a sharded matrix is whole.
                module.__dict__["_after"] = compare
            else:
                run.hook(name, lambda module, args, output, compare=compare: compare(None, output, module))

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Take the matrices out again."""
        self.rebuild(model, {})
        return {}

    def rebuild(self, model: nn.Module, record: Record) -> None:
        """As ``finalize``."""
        for name in self.widths:
            unproject(model, name)

    def _terms(self, run: Run) -> list[str]:
        return [f"{run.scope}/{name}" for name in self.layers]

    def _compare(
        self,
        run: Run,
        column: str,
        name: str,
        matrix: Tensor | None,
        output: Any,
        module: nn.Module | None = None,
    ) -> Any:
        """The student's output with its loss attached. module: that gave it, where it may be a part."""
        if not run.in_step:
            return output
        tensor = tensor_of(output) if module is None else run.whole(module, tensor_of(output))
        refuse_part(tensor, name, self.widths.get(name, (None,))[0])
        ours, theirs = width_last(tensor), width_last(run.now.columns[column])
        if matrix is not None:
            ours = ours.float() @ matrix.float().T
        if ours.shape != theirs.shape:
            raise ConfigError(
                f"distillation.features: {name} gives {list(ours.shape)}, the teacher {list(theirs.shape)}; say "
                "widths, so that a projection can be learned, or map other modules"
            )
        each = (squared_distance if self.distance == "mse" else cosine_distance)(theirs, ours)
        term = self.weight * mean_over_places(run, each).sum() / run.rows
        return with_term(run, output, term, column)


def _hidden(x: Tensor) -> Tensor:
    return x.float()
