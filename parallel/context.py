"""Context parallelism: every rank has a piece of each sequence, and attention sees the keys of the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError
from .mesh import Mesh
from .places import by_piece, in_order, places_of, runs_in, runs_of

# Shapes: … rows and heads, T tokens of the whole sequence, L = T / pieces tokens of a piece, D width of one head.


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Which tokens of each sequence are here: L of them, see `places_of`."""

    index: int
    pieces: int
    gather: Callable[[Tensor], Tensor]
    """[…, L, D] of all ranks → […, T, D] in their order, with gradients."""
    real: bool = True
    """False: the tensors have shapes alone, on which torch cannot build its causal bias."""

    def places(self, length: int, device: torch.device | str = "cpu") -> Tensor:
        """int64 [length]: where in the whole sequence the tokens here stand."""
        return places_of(self.index, self.pieces, length, device)


def piece_of(mesh: Mesh) -> Piece:
    """The piece that this rank has."""
    group = mesh.axes("context").get_group()

    def gather(x: Tensor) -> Tensor:
        return _Gather.apply(x, group, mesh.context)  # pyright: ignore[reportReturnType]

    return Piece(index=mesh.coordinates["context"], pieces=mesh.context, gather=gather)


def shapes_only(pieces: int) -> WholeSequences:
    """For a run on shapes alone: attention as on a mesh, nothing is communicated."""
    return WholeSequences(
        Piece(index=0, pieces=pieces, gather=lambda x: torch.cat([x] * pieces, dim=-2), real=False)
    )


class _Gather(torch.autograd.Function):
    """All pieces put in order; each rank's gradient is the sum of what all ranks have for its piece."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, pieces: int) -> Tensor:
        ctx.group, ctx.pieces = group, pieces
        x = x.contiguous()
        found = [torch.empty_like(x) for _ in range(pieces)]
        dist.all_gather(found, x, group=group)
        return in_order(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        stacked = by_piece(gradients[0], ctx.pieces)  # [pieces, …, L, D]
        here = torch.empty_like(stacked[0])
        dist.reduce_scatter_tensor(here, stacked.flatten(0, 1), group=ctx.group)
        return here, None, None


class _Acting(threading.local):
    now = False


_acting = _Acting()


class WholeSequences(TorchFunctionMode):
    """While this is open, `scaled_dot_product_attention` of a piece's queries goes over the whole sequence's keys.

    A causal flag counts from the tokens' places. A mask is taken as it is: it must be over all T keys.
    raises: ConfigError for a mask over the piece's keys alone, for queries and keys of different sequences, and for
        attention in another form that would stay within the piece.
    cost:   keys and values of a layer are gathered forward and their gradients summed backward, 2 · rows · T · width
        numbers each; they are held whole while the layer runs, and until its backward where it is not recomputed.
    """

    def __init__(self, piece: Piece) -> None:
        super().__init__()
        self._piece = piece

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention and not _acting.now:
            _acting.now = True  # where several of these are open, one acts
            try:
                return _attend(self._piece, *args, **(kwargs or {}))
            finally:
                _acting.now = False
        if func is functional.multi_head_attention_forward:
            raise ConfigError(
                "parallel.context: torch's MultiheadAttention attends within a piece of the sequence; use a module "
                "that calls torch.nn.functional.scaled_dot_product_attention, or context: 1"
            )
        return func(*args, **(kwargs or {}))


def _attend(
    piece: Piece,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    length, whole = key.shape[-2], key.shape[-2] * piece.pieces
    if query.shape[-2] != length:
        raise ConfigError(
            f"parallel.context: attention of {query.shape[-2]} queries over {length} keys is between two sequences; "
            "only a sequence's attention to itself can be divided, use context: 1"
        )
    if attn_mask is not None and attn_mask.shape[-1] not in (1, whole):
        raise ConfigError(
            f"parallel.context: an attention mask over {attn_mask.shape[-1]} keys of {whole}: the model makes it from "
            "its piece of the sequence; let the mask be an input of the model, or use context: 1"
        )
    key, value = _gathered(piece, key, value)
    if is_causal:
        each = length // runs_in(length)
        found = []
        for number, asked in zip(
            runs_of(piece.index, piece.pieces, length), query.split(each, dim=-2), strict=True
        ):
            end = (number + 1) * each  # what comes later is seen by nobody in this run
            seen = (asked, key[..., :end, :], value[..., :end, :])
            if number and piece.real:
                found.append(_attend_back(*seen, dropout_p=dropout_p, **options))
            else:
                found.append(
                    functional.scaled_dot_product_attention(
                        *seen, dropout_p=dropout_p, is_causal=not number, **options
                    )
                )
        return torch.cat(found, dim=-2)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **options
    )


def _gathered(piece: Piece, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    if key.shape != value.shape or key.dtype != value.dtype:
        return piece.gather(key), piece.gather(value)
    both = piece.gather(torch.stack((key, value)))  # one message instead of two
    return both[0], both[1]


def _attend_back(
    query: Tensor, key: Tensor, value: Tensor, *, enable_gqa: bool = False, **options: Any
) -> Tensor:
    """The queries of the last tokens see what is before them and themselves."""
    if enable_gqa:  # torch's causal bias knows nothing of groups of heads
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, dim=-3) for x in (key, value))
    seen = causal_lower_right(query.shape[-2], key.shape[-2])  # the fast kernels know it by its form
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, **options)


def divide_sequences(part: nn.Module, blocks: Iterable[str], mesh: Mesh) -> None:
    """Let `part` compute on pieces of sequences, in place.

    blocks: modules that may run again by themselves in the backward, in another thread.
    A module with an attribute `sequence_place` is told (index of the piece, number of pieces): it numbers positions.
    """
    piece = piece_of(mesh)
    present = dict(part.named_modules())
    for module in [part, *(present[name] for name in blocks if name in present)]:
        _open_in(module, piece)
    for module in present.values():
        if hasattr(module, "sequence_place"):
            module.__dict__["sequence_place"] = (piece.index, piece.pieces)


def _open_in(module: nn.Module, piece: Piece) -> None:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with WholeSequences(piece):
            return plain(*args, **kwargs)

    module.forward = forward


def refuse_whole_sequences(model: nn.Module, attention: str | None, why: str, degree: int) -> None:
    """raises: ConfigError where `model` cannot be run on pieces of its sequences (see `Layout.attention`)."""
    given = f"parallel.context={degree}"
    if attention is None:
        raise ConfigError(
            f"{given}: {why or 'this model has no sequences that could be cut'}; use context: 1"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.conv._ConvNd | nn.RNNBase):
            raise ConfigError(
                f"{given}: {name} is a {type(module).__name__}, which looks at several tokens; only models whose "
                "tokens meet in attention alone can be cut along the sequence; use context: 1"
            )
