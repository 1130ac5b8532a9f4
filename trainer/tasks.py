"""What a run optimises: which columns go into the model, which items count, and their summed loss.

The loss is a sum over real items, never a mean: whoever knows the global count divides by it, so that ranks
and micro-batches of unequal size weigh every item alike.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from ..compression.outputs import logits_of
from ..errors import ConfigError, DataError
from ..parallel.whole import full_tensor, is_divided

IGNORED = -100  # a target that is not an item: padding, or text that is given and not to be learned
_NOT_A_CLASS = -(
    2**31
)  # cross_entropy ignores nothing but this: a class of -100 in a table is an error to be seen

Columns = Mapping[str, Tensor]


class Task(Protocol):
    """The calls that the loop, the engines and the metrics make; B rows, C classes or vocabulary."""

    @property
    def name(self) -> str:
        """What `task_for` knows it by."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that are reported unless the config names others."""
        ...

    @property
    def uniform_items_per_row(self) -> int | None:
        """Items of every row where that is constant; None where `count` must be summed over the data ranks."""
        ...

    def inputs(self, columns: Columns) -> Tensor | dict[str, Tensor]:
        """What the model is called with: one tensor, or keyword inputs."""
        ...

    def aligned(self, columns: Columns) -> Columns:
        """The columns with targets that each logit's place has by itself, so that rows may be cut along tokens."""
        ...

    def predictions(
        self, outputs: Any, columns: Columns, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, C], their targets [N], and which of the N are items (bool [N])."""
        ...

    def loss_sum(self, outputs: Any, columns: Columns, valid: Tensor | None) -> Tensor:
        """Cross-entropy summed over the items, computed in float32 (0-d)."""
        ...

    def count(self, columns: Columns, valid: Tensor | None) -> Tensor:
        """Number of items, int64 and 0-d, on the columns' device."""
        ...

    def items(self, columns: Columns, valid: Tensor | None) -> Tensor:
        """Which places of the model's logits are items: bool, of the logits' shape but for their last dim."""
        ...


@dataclass(frozen=True, kw_only=True)
class _CrossEntropy:
    """Cross-entropy of `targets` [B, …] under logits [B, …, C]; rows that are not valid count nothing."""

    name: str
    metrics: tuple[str, ...]
    uniform_items_per_row: int | None
    ignored: int = IGNORED
    input_column: str = "inputs"
    target_column: str = "targets"

    def inputs(self, columns: Columns) -> Tensor | dict[str, Tensor]:
        """The one column that the model takes. raises: DataError where it is missing."""
        return _column(columns, self.input_column, self.name)

    def aligned(self, columns: Columns) -> Columns:
        """As `Task.aligned`: they are."""
        return columns

    def loss_sum(self, outputs: Any, columns: Columns, valid: Tensor | None) -> Tensor:
        aligned, targets = self._aligned(logits_of(outputs), columns, valid)
        if aligned.ndim != 2:
            aligned, targets = aligned.flatten(0, -2), targets.flatten()
        if is_divided(aligned):
            from ..parallel.vocabulary import split_cross_entropy

            return split_cross_entropy(aligned, targets, self.ignored)
        return F.cross_entropy(aligned.float(), targets, ignore_index=self.ignored, reduction="sum")

    def count(self, columns: Columns, valid: Tensor | None) -> Tensor:
        return self._targets(columns, valid).ne(self.ignored).sum()

    def items(self, columns: Columns, valid: Tensor | None) -> Tensor:
        return self._targets(columns, valid).ne(self.ignored)

    def predictions(
        self, outputs: Any, columns: Columns, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        aligned, targets = self._aligned(full_tensor(logits_of(outputs)), columns, valid)
        return aligned.flatten(0, -2).float(), targets.flatten(), targets.flatten().ne(self.ignored)

    def _aligned(self, logits: Tensor, columns: Columns, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits [B, …, C] and targets [B, …] where logits[i] predicts targets[i]."""
        targets = self._targets(columns, valid)
        if logits.shape[:-1] != targets.shape:
            raise DataError(
                f"task {self.name}: logits {list(logits.shape)} do not fit targets {list(targets.shape)}; "
                "want one class number for each row (classification) or each token (language)"
            )
        return logits, targets

    def _targets(self, columns: Columns, valid: Tensor | None) -> Tensor:
        return _only_valid(_column(columns, self.target_column, self.name), valid, self.ignored)


@dataclass(frozen=True, kw_only=True)
class Classification(_CrossEntropy):
    """One class for each row: inputs → logits [B, C], targets [B]."""

    name: str = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    uniform_items_per_row: int | None = 1
    ignored: int = _NOT_A_CLASS


@dataclass(frozen=True, kw_only=True)
class CausalLanguageModel(_CrossEntropy):
    """The next token at each place: inputs [B, T] → logits [B, T, V], targets [B, T] already shifted by the
    data.

    Targets of -100 are not items. Data that has none may say so with `uniform_items_per_row=T`, which saves
    the sum over ranks; then every row weighs T items.
    """

    name: str = "causal_lm"
    metrics: tuple[str, ...] = ("perplexity",)
    uniform_items_per_row: int | None = None


@dataclass(frozen=True, kw_only=True)
class TransformersTask(_CrossEntropy):
    """A transformers model: columns with its own input names go in as keywords, `.logits` comes out.

    A column "labels" is in the library's own form (causal models: the same tokens as `input_ids`, shifted
    here). A column "targets" is already aligned with the logits. A causal model with neither learns its
    `input_ids`, where `attention_mask` is 1. Columns of other names are not given to the model. A column
    "inputs" stands for the main input where the data has no column of that name.
    """

    main_input: str = "input_ids"
    causal: bool = False

    def inputs(self, columns: Columns) -> dict[str, Tensor]:
        """The columns with names of the library, as keywords. raises: DataError without the main one."""
        known = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_values")
        found = {name: columns[name] for name in known if name in columns}
        if self.main_input not in found:
            found[self.main_input] = _column(columns, self.input_column, f"{self.name} ({self.main_input})")
        return found

    def aligned(self, columns: Columns) -> Columns:
        """As `Task.aligned`: a causal model's own tokens, one to the left."""
        if not self._shifts(columns):
            return columns
        targets = F.pad(self._targets(columns, None), (0, 1), value=self.ignored)
        return {**{name: c for name, c in columns.items() if name != "labels"}, self.target_column: targets}

    def _aligned(self, logits: Tensor, columns: Columns, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        # logits[:, i] predicts token i + 1: the last place has nothing to predict
        return super()._aligned(logits[:, :-1] if self._shifts(columns) else logits, columns, valid)

    def items(self, columns: Columns, valid: Tensor | None) -> Tensor:
        """As `Task.items`; the last place of a causal model predicts nothing."""
        items = super().items(columns, valid)
        return F.pad(items, (0, 1)) if self._shifts(columns) else items

    def _targets(self, columns: Columns, valid: Tensor | None) -> Tensor:
        if not self._shifts(columns):
            name = self.target_column if self.target_column in columns else "labels"
            return _only_valid(_column(columns, name, self.name), valid, self.ignored)
        if "labels" in columns:
            labels = columns["labels"]
        else:
            labels = self.inputs(columns)[self.main_input]
            if "attention_mask" in columns:
                labels = labels.masked_fill(columns["attention_mask"] == 0, self.ignored)
        return _only_valid(labels[:, 1:], valid, self.ignored)

    def _shifts(self, columns: Columns) -> bool:
        return self.causal and self.target_column not in columns


def _only_valid(targets: Tensor, valid: Tensor | None, ignored: int) -> Tensor:
    """`targets` as int64 with the rows that are padding marked as no items."""
    targets = targets.long()
    if valid is None:
        return targets
    return targets.masked_fill(~valid.view(-1, *[1] * (targets.ndim - 1)), ignored)


def _column(columns: Columns, name: str, task: str) -> Tensor:
    if name not in columns:
        raise DataError(
            f"task {task}: the data has no column {name!r}, only {', '.join(map(repr, columns))}; name it "
            "with data.inputs and data.targets"
        )
    return columns[name]


def _tasks() -> dict[str, Task]:
    words, classes = ("perplexity",), ("accuracy",)
    return {
        "classification": Classification(),
        "causal_lm": CausalLanguageModel(),
        "transformers.causal_lm": TransformersTask(
            name="transformers.causal_lm", metrics=words, uniform_items_per_row=None, causal=True
        ),
        "transformers.masked_lm": TransformersTask(
            name="transformers.masked_lm", metrics=words, uniform_items_per_row=None
        ),
        "transformers.token_classification": TransformersTask(
            name="transformers.token_classification", metrics=classes, uniform_items_per_row=None
        ),
        "transformers.sequence_classification": TransformersTask(
            name="transformers.sequence_classification",
            metrics=classes,
            uniform_items_per_row=1,
            ignored=_NOT_A_CLASS,
        ),
        "transformers.image_classification": TransformersTask(
            name="transformers.image_classification",
            metrics=classes,
            uniform_items_per_row=1,
            ignored=_NOT_A_CLASS,
            main_input="pixel_values",
        ),
    }


def task_for(name: str) -> Task:
    """The task that a model states as its own (`BuiltModel.task`).

    raises: ConfigError for an unknown name, with the nearest.
    """
    tasks = _tasks()
    if name not in tasks:
        close = difflib.get_close_matches(name, tasks, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"task: {name!r} is not known{hint}; known: {', '.join(tasks)}")
    return tasks[name]
