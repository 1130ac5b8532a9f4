"""Numbers of the input column made ready for the model, whole batches at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .source import ArraySource, ColumnInfo, Source

CACHED_BYTES = (
    1 << 30
)  # transformed columns up to this size are kept instead of computed anew for every batch
_CHUNK = 8192  # rows transformed at a time when all are: bounds the memory beside the result


@dataclass(frozen=True, kw_only=True)
class Transform:
    """`(x * scale - mean) / std` in float32, then one vector per row if `flatten`.

    The channel is the first dimension of a row of two or more dimensions, otherwise its only one.
    Integer inputs other than bytes are token numbers: they cannot be scaled, only flattened.
    """

    scale: float | None = None  # factor on the raw value; default 1/255 for uint8, 1 for floating point
    mean: tuple[float, ...] | None = None  # after scale; one for all or one per channel
    std: tuple[float, ...] | None = None  # after scale; one for all or one per channel
    flatten: bool = False

    @classmethod
    def from_words(cls, words: Mapping[str, Any]) -> "Transform":
        """From config words. ConfigError for an unknown word or a std of 0."""
        known = [field.name for field in fields(cls)]
        if unknown := [word for word in words if word not in known]:
            raise ConfigError(f"data.transform: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**{word: _values(word, value) for word, value in words.items() if value is not None})

    def __post_init__(self) -> None:
        if self.std is not None and not all(self.std):
            raise ConfigError(f"data.transform.std={list(self.std)}: want no 0, it divides")

    def __call__(self, rows: Tensor) -> Tensor:
        """[rows, …] → float32 [rows, …]; a new tensor unless there is nothing to do.

        raises: DataError when mean or std fit no channel, or the column holds token numbers.
        """
        scale = self.scale
        if rows.dtype == torch.uint8 and scale is None:
            scale = 1 / 255
        number = rows
        if rows.dtype == torch.uint8 or rows.is_floating_point():
            number = rows.to(torch.float32)
        if scale is not None or self.mean is not None or self.std is not None:
            if not number.is_floating_point():
                raise DataError(
                    f"data.transform on inputs of type {rows.dtype}: want pixels (uint8) or floating point; "
                    "leave out scale, mean and std"
                )
            number = number.clone() if number is rows else number
            if scale is not None:
                number.mul_(scale)
            if self.mean is not None:
                number.sub_(_per_channel("mean", self.mean, number))
            if self.std is not None:
                number.div_(_per_channel("std", self.std, number))
        return number.flatten(1) if self.flatten and number.dim() > 1 else number


def transformed(source: Source, transform: Transform, *, column: str = "inputs") -> Source:
    """`source` with `transform` on one column; itself where it has no such column.

    A source in memory is transformed at once if its columns then stay within 1 GiB: a step is left with a copy.
    """
    if column not in source.columns:
        if transform != Transform():
            raise DataError(
                f"data.transform works on the column {column!r}, but the data have {', '.join(source.columns)}; "
                f"say which one it is with inputs: NAME"
            )
        return source
    info = source.columns[column]
    is_ready = info.dtype == torch.float32 or not (info.dtype == torch.uint8 or info.dtype.is_floating_point)
    if is_ready and transform == Transform():
        return source
    size = prod(info.shape) * len(source) * 4
    if isinstance(source, ArraySource) and size <= CACHED_BYTES:
        return _all_at_once(source, transform, column)
    return TransformedSource(source, transform, column)


class TransformedSource:
    """A source whose batches are transformed as they are gathered."""

    def __init__(self, source: Source, transform: Transform, column: str) -> None:
        self._source, self._transform, self._column = source, transform, column
        probe = transform(source.gather(np.zeros(1, dtype=np.int64))[column])
        self.columns = {**source.columns, column: ColumnInfo.of(probe)}
        self.vocabulary = getattr(source, "vocabulary", None)
        self.classes = getattr(source, "classes", None)

    @property
    def fingerprint(self) -> str:
        """The data's: another transform is not other data."""
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Column → [len(rows), …], the input column transformed."""
        columns = self._source.gather(rows)
        return {**columns, self._column: self._transform(columns[self._column])}


def _all_at_once(source: ArraySource, transform: Transform, column: str) -> ArraySource:
    raw = source.tensors[column]
    first = transform(raw[:1])
    result = torch.empty((len(raw), *first.shape[1:]), dtype=first.dtype)
    for begin in range(0, len(raw), _CHUNK):
        result[begin : begin + _CHUNK] = transform(raw[begin : begin + _CHUNK])
    return ArraySource(
        {**source.tensors, column: result},
        fingerprint=source.fingerprint,
        vocabulary=source.vocabulary,
        classes=source.classes,
    )


def _values(word: str, value: Any) -> Any:
    if word == "flatten":
        if isinstance(value, bool):
            return value
        raise ConfigError(f"data.transform.flatten={value!r}: want true or false")
    many: list[Any] = [*value] if isinstance(value, list | tuple) and word != "scale" else [value]
    if not many or any(type(one) not in (int, float) for one in many):
        wanted = "a number" if word == "scale" else "a list of numbers"
        raise ConfigError(f"data.transform.{word}={value!r}: want {wanted}")
    return float(many[0]) if word == "scale" else tuple(map(float, many))


def _per_channel(word: str, values: tuple[float, ...], rows: Tensor) -> Tensor:
    channels = rows.shape[1] if rows.dim() > 1 else 1
    if len(values) not in (1, channels):
        raise DataError(
            f"data.transform.{word} has {len(values)} values, but inputs of shape {tuple(rows.shape[1:])} have "
            f"{channels} channels; give one value, or one per channel"
        )
    shape = (1, len(values), *[1] * (rows.dim() - 2)) if rows.dim() > 1 else (1,)
    return torch.tensor(values, dtype=torch.float32).reshape(shape)
